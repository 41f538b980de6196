package rig

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// pod is a process: the first container.
type pod struct {
	uid     types.UID
	address string
	root    string
	log     *log
	command *exec.Cmd
	ended   chan struct{}
}

// run starts what the object describes.
func (n *Node) run(ctx context.Context, object *corev1.Pod) (*pod, error) {
	number := n.started
	// Numbers are not used twice, so that no connection reaches another pod than it was meant for.
	n.started++
	started := &pod{
		uid:     object.UID,
		address: fmt.Sprintf("10.99.%d.%d", 16+number/250, 1+number%250),
		root:    filepath.Join(Directory(), "pods", strconv.Itoa(number)),
		log:     newLog(),
		ended:   make(chan struct{}),
	}
	command, err := n.container(ctx, object, started.root, started.address)
	if err != nil {
		empty(started.root)
		return nil, err
	}
	command.Stdout, command.Stderr = started.log, started.log
	if err := startNamed(command, object.Name); err != nil {
		empty(started.root)
		return nil, err
	}
	started.command = command
	go func() {
		err := command.Wait()
		_, _ = fmt.Fprintf(started.log, "rig: the container has ended: %v\n", err)
		started.log.close()
		close(started.ended)
	}()
	if err := started.connect(number, object.Spec.SecurityContext); err != nil {
		started.end()
		return nil, err
	}
	return started, nil
}

// startNamed starts a process whose host has this name.
func startNamed(command *exec.Cmd, name string) error {
	result := make(chan error)
	go func() {
		// The thread has the name as well, so it must end with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
			result <- err
			return
		}
		if err := unix.Sethostname([]byte(name)); err != nil {
			result <- err
			return
		}
		result <- command.Start()
	}()
	return <-result
}

// connect plugs the network of the process into the bridge.
func (p *pod) connect(number int, context *corev1.PodSecurityContext) error {
	near, far, process := fmt.Sprintf("pod%d", number), fmt.Sprintf("eth%d", number), strconv.Itoa(p.command.Process.Pid)
	for _, line := range []string{
		"link add " + near + " type veth peer name " + far + " netns " + process,
		"link set " + near + " master " + bridge + " up",
	} {
		if err := ip(line); err != nil {
			return err
		}
	}
	script := fmt.Sprintf("ip link set lo up && ip address add %s/16 dev %s && ip link set %s up", p.address, far, far)
	if context != nil {
		for _, setting := range context.Sysctls {
			script += fmt.Sprintf(" && echo %s > /proc/sys/%s", setting.Value, strings.ReplaceAll(setting.Name, ".", "/"))
		}
	}
	if output, err := p.inside("sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, output)
	}
	return nil
}

// inside is a command that runs in the network of the pod.
func (p *pod) inside(arguments ...string) *exec.Cmd {
	network := fmt.Sprintf("--net=/proc/%d/ns/net", p.command.Process.Pid)
	return exec.Command("nsenter", append([]string{network, "--"}, arguments...)...)
}

// listens is whether the process has a listening or a datagram socket.
func (p *pod) listens() bool {
	const listen = " 0A "
	table := fmt.Sprintf("/proc/%d/net/", p.command.Process.Pid)
	for _, kind := range []string{"tcp", "tcp6"} {
		if content, err := os.ReadFile(table + kind); err == nil && bytes.Contains(content, []byte(listen)) {
			return true
		}
	}
	datagrams, err := os.ReadFile(table + "udp6")
	return err == nil && bytes.Count(datagrams, []byte("\n")) > 1
}

func (p *pod) status(object *corev1.Pod) corev1.PodStatus {
	now := metav1.Now()
	status := corev1.PodStatus{
		Phase:     corev1.PodRunning,
		HostIP:    NodeAddress,
		PodIP:     p.address,
		PodIPs:    []corev1.PodIP{{IP: p.address}},
		StartTime: &now,
	}
	for _, kind := range []corev1.PodConditionType{
		corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady,
	} {
		condition := corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now}
		status.Conditions = append(status.Conditions, condition)
	}
	started := true
	for _, container := range object.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name:        container.Name,
			Image:       container.Image,
			ImageID:     container.Image,
			ContainerID: "rig://" + strconv.Itoa(p.command.Process.Pid),
			Ready:       true,
			Started:     &started,
			State:       corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
	return status
}

// end asks the process to end, and gives it a second for that.
func (p *pod) end() {
	_ = p.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(time.Second):
	}
	p.kill()
}

func (p *pod) kill() {
	_ = p.command.Process.Kill()
	<-p.ended
	empty(p.root)
}
