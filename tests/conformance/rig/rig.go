// Package rig is a small Kubernetes that lives in a network namespace of its own: etcd, kube-apiserver,
// kube-controller-manager, and a node whose pods are processes. Nothing that it does leaves the namespace.
package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// NodeAddress is where the node's kubelet listens, and the gateway of the pods.
	NodeAddress = "10.99.0.1"
	// GatewayAddress is free for a router; so is every other address of 10.99.2.0/24.
	GatewayAddress = "10.99.2.1"

	bridge = "rig0"
	// A variable rather than the process id tells where we are: in a container anything may have the id 1.
	inside = "SNIGATE_RIG_DIRECTORY"
	echo   = "sigs.k8s.io/gateway-api/conformance/echo-basic"
)

// Main is the first thing in main or TestMain. It returns in the namespaces of the rig only: outside it runs this
// program again in new ones, and as the child that a component of Kubernetes is, it runs that component.
func Main() {
	if run, ok := components[filepath.Base(os.Args[0])]; ok {
		os.Exit(run())
	}
	if Directory() == "" {
		os.Exit(again())
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "rig:", err)
		os.Exit(1)
	}
}

// Directory is where the rig and its tests keep their files. It is removed at the end.
func Directory() string {
	return os.Getenv(inside)
}

// again runs this program in namespaces of its own. As their first process it takes all others with it when it ends.
func again() int {
	directory, err := os.MkdirTemp("", "rig")
	if err != nil {
		fmt.Fprintln(os.Stderr, "rig:", err)
		return 1
	}
	defer os.RemoveAll(directory)
	// Needs the network, if the module is not in the cache, so it cannot be done inside.
	build := exec.Command("go", "build", "-o", filepath.Join(directory, "echo-basic"), echo)
	if output, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "rig: cannot build %s: %v\n%s", echo, err, output)
		return 1
	}
	command := exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Args[0] = os.Args[0]
	command.Env = append(os.Environ(), inside+"="+directory)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID | unix.CLONE_NEWNET,
		Unshareflags: unix.CLONE_NEWNS,
		Pdeathsig:    syscall.SIGKILL,
	}
	err = command.Run()
	var status *exec.ExitError
	if errors.As(err, &status) {
		return status.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "rig: cannot make namespaces (are you root?):", err)
		return 1
	}
	return 0
}

func prepare() error {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("cannot mount /proc: %w", err)
	}
	for _, line := range []string{
		"link set lo up",
		// Without an address of its own, a bridge has the lowest of its ports', and is unreachable for half a minute for
		// those who knew it by another one when a port comes.
		"link add " + bridge + " address 02:00:0a:63:00:01 type bridge",
		"link set " + bridge + " up",
		"address add " + NodeAddress + "/16 dev " + bridge,
		"address add " + GatewayAddress + "/16 dev " + bridge,
	} {
		if err := ip(line); err != nil {
			return err
		}
	}
	return nil
}

// AddAddress makes an address of 10.99.0.0/16 one of this machine's.
func AddAddress(address string) error {
	return ip("address add " + address + "/16 dev " + bridge)
}

// AddHost makes a name resolve to an address.
func AddHost(address, name string) error {
	const hosts = "/etc/hosts"
	content, err := os.ReadFile(hosts)
	if err != nil {
		return err
	}
	changed := filepath.Join(Directory(), name+".hosts")
	if err := os.WriteFile(changed, fmt.Appendf(content, "\n%s %s\n", address, name), 0o644); err != nil {
		return err
	}
	return unix.Mount(changed, hosts, "", unix.MS_BIND, "")
}

func ip(line string) error {
	return run("ip", strings.Fields(line)...)
}

func run(program string, arguments ...string) error {
	output, err := exec.Command(program, arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(arguments, " "), err, output)
	}
	return nil
}
