package rig

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// pod is a process: the conformance suite's echo server, whatever the image, with the environment of the pod's first
// container.
type pod struct {
	uid       types.UID
	address   string
	directory string
	log       *log
	command   *exec.Cmd
	ended     chan struct{}
}

// run starts what the object describes.
func (n *Node) run(ctx context.Context, object *corev1.Pod) (*pod, error) {
	container := object.Spec.Containers[0]
	number := n.started
	started := &pod{
		uid:       object.UID,
		address:   fmt.Sprintf("10.99.%d.%d", 16+number/250, 1+number%250),
		directory: filepath.Join(Directory(), "pods", string(object.UID)),
		log:       newLog(),
		ended:     make(chan struct{}),
	}
	mounts, err := n.mount(ctx, object, started.directory)
	if err != nil {
		return nil, err
	}
	// Numbers are not used twice, so that no connection reaches another pod than it was meant for.
	n.started++
	command := exec.Command(filepath.Join(Directory(), "echo-basic"))
	command.Env = environment(object, container, started.address, mounts)
	command.Stdout, command.Stderr = started.log, started.log
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := command.Start(); err != nil {
		return nil, err
	}
	started.command = command
	go func() {
		_ = command.Wait()
		started.log.close()
		close(started.ended)
	}()
	if err := connect(command.Process.Pid, number, started.address); err != nil {
		started.end()
		return nil, err
	}
	return started, nil
}

// mount writes the Secrets that a container mounts, and returns where each path is.
func (n *Node) mount(ctx context.Context, object *corev1.Pod, directory string) (map[string]string, error) {
	mounts := map[string]string{}
	for _, mount := range object.Spec.Containers[0].VolumeMounts {
		for _, volume := range object.Spec.Volumes {
			if volume.Name != mount.Name || volume.Secret == nil {
				continue
			}
			secret, err := n.client.CoreV1().Secrets(object.Namespace).Get(ctx, volume.Secret.SecretName, metav1.GetOptions{})
			if err != nil {
				return nil, err
			}
			there := filepath.Join(directory, mount.MountPath)
			mounts[mount.MountPath] = there
			if err := os.MkdirAll(there, 0o700); err != nil {
				return nil, err
			}
			items := volume.Secret.Items
			if len(items) == 0 {
				for key := range secret.Data {
					items = append(items, corev1.KeyToPath{Key: key, Path: key})
				}
			}
			for _, item := range items {
				if err := os.WriteFile(filepath.Join(there, item.Path), secret.Data[item.Key], 0o600); err != nil {
					return nil, err
				}
			}
		}
	}
	return mounts, nil
}

func environment(object *corev1.Pod, container corev1.Container, address string, mounts map[string]string) []string {
	lines := []string{"PATH=" + os.Getenv("PATH")}
	for _, variable := range container.Env {
		value := variable.Value
		for path, there := range mounts {
			// There is no file system of its own.
			if rest, ok := strings.CutPrefix(value, path); ok {
				value = there + rest
			}
		}
		if source := variable.ValueFrom; source != nil && source.FieldRef != nil {
			switch source.FieldRef.FieldPath {
			case "metadata.name":
				value = object.Name
			case "metadata.namespace":
				value = object.Namespace
			case "status.podIP":
				value = address
			}
		}
		lines = append(lines, variable.Name+"="+value)
	}
	return lines
}

// connect plugs the network of a process into the bridge.
func connect(pid, number int, address string) error {
	near, far, process := fmt.Sprintf("pod%d", number), fmt.Sprintf("eth%d", number), strconv.Itoa(pid)
	for _, line := range []string{
		"link add " + near + " type veth peer name " + far + " netns " + process,
		"link set " + near + " master " + bridge + " up",
	} {
		if err := ip(line); err != nil {
			return err
		}
	}
	script := fmt.Sprintf("ip link set lo up && ip address add %s/16 dev %s && ip link set %s up", address, far, far)
	return run("nsenter", "--net=/proc/"+process+"/ns/net", "sh", "-c", script)
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

func (p *pod) end() {
	_ = p.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(time.Second):
		_ = p.command.Process.Kill()
		<-p.ended
	}
	_ = os.RemoveAll(p.directory)
}
