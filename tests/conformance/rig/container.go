package rig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// entrypoint is where the program of an image is in its container.
const entrypoint = "/entrypoint"

// system is what containers have of this machine.
var system = []string{"/bin", "/dev", "/lib", "/lib64", "/proc", "/usr"}

// container is the command of a pod's first container, not yet in a network.
func (n *Node) container(ctx context.Context, object *corev1.Pod, root, address string) (*exec.Cmd, error) {
	spec := object.Spec.Containers[0]
	program, ok := n.images[path.Base(strings.Split(spec.Image, ":")[0])]
	if !ok {
		program = n.images["echo-basic"]
	}
	if err := n.fill(ctx, object, root, program); err != nil {
		return nil, err
	}
	environment := n.environment(object, address)
	arguments := make([]string, len(spec.Args))
	for i, argument := range spec.Args {
		arguments[i] = expansion.Expand(argument, expansion.MappingFuncFor(environment))
	}
	command := &exec.Cmd{Path: entrypoint, Args: append([]string{spec.Name}, arguments...), Dir: "/"}
	for name, value := range environment {
		command.Env = append(command.Env, name+"="+value)
	}
	command.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Cloneflags: unix.CLONE_NEWNET}
	if context := object.Spec.SecurityContext; context != nil && context.RunAsUser != nil && context.RunAsGroup != nil {
		command.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(*context.RunAsUser), Gid: uint32(*context.RunAsGroup)}
	}
	return command, nil
}

// fill makes the root directory of a container: the programs of this machine, that of the image, and the volumes.
func (n *Node) fill(ctx context.Context, object *corev1.Pod, root, program string) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	for _, mount := range object.Spec.Containers[0].VolumeMounts {
		for _, volume := range object.Spec.Volumes {
			if volume.Name != mount.Name {
				continue
			}
			files, err := n.files(ctx, object, volume)
			if err != nil {
				return fmt.Errorf("volume %s: %w", volume.Name, err)
			}
			for name, content := range files {
				file := filepath.Join(root, mount.MountPath, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					return err
				}
				if err := os.WriteFile(file, content, 0o644); err != nil {
					return err
				}
			}
		}
	}
	// Last, so that nothing has to be unmounted when a volume is not there yet.
	for _, directory := range system {
		target := filepath.Join(root, directory)
		if _, err := os.Stat(directory); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.Mkdir(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(directory, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
	}
	target := filepath.Join(root, entrypoint)
	if err := os.WriteFile(target, nil, 0o755); err != nil {
		return err
	}
	return unix.Mount(program, target, "", unix.MS_BIND, "")
}

// empty undoes fill.
func empty(root string) {
	for _, path := range append([]string{entrypoint}, system...) {
		_ = unix.Unmount(filepath.Join(root, path), unix.MNT_DETACH)
	}
	// Never into a mount that is still there.
	_ = exec.Command("rm", "-r", "-f", "--one-file-system", root).Run()
}

// files are those of a volume, by their paths in it.
func (n *Node) files(ctx context.Context, object *corev1.Pod, volume corev1.Volume) (map[string][]byte, error) {
	core := n.client.CoreV1()
	files := map[string][]byte{}
	add := func(data map[string][]byte, items []corev1.KeyToPath) {
		for key, content := range data {
			if len(items) == 0 {
				files[key] = content
			}
		}
		for _, item := range items {
			files[item.Path] = data[item.Key]
		}
	}
	configMap := func(name string, items []corev1.KeyToPath) error {
		object, err := core.ConfigMaps(object.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		data := map[string][]byte{}
		for key, content := range object.Data {
			data[key] = []byte(content)
		}
		add(data, items)
		return nil
	}
	if source := volume.Secret; source != nil {
		secret, err := core.Secrets(object.Namespace).Get(ctx, source.SecretName, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		add(secret.Data, source.Items)
	}
	if source := volume.ConfigMap; source != nil {
		if err := configMap(source.Name, source.Items); err != nil {
			return nil, err
		}
	}
	if volume.Projected == nil {
		return files, nil
	}
	for _, source := range volume.Projected.Sources {
		if source.ConfigMap != nil {
			if err := configMap(source.ConfigMap.Name, source.ConfigMap.Items); err != nil {
				return nil, err
			}
		}
		if source.DownwardAPI != nil {
			// Of those that admission adds, the namespace is all.
			files["namespace"] = []byte(object.Namespace)
		}
		if token := source.ServiceAccountToken; token != nil {
			request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
				ExpirationSeconds: token.ExpirationSeconds,
				BoundObjectRef: &authenticationv1.BoundObjectReference{
					Kind: "Pod", APIVersion: "v1", Name: object.Name, UID: object.UID,
				},
			}}
			issued, err := core.ServiceAccounts(object.Namespace).
				CreateToken(ctx, object.Spec.ServiceAccountName, request, metav1.CreateOptions{})
			if err != nil {
				return nil, err
			}
			files[token.Path] = []byte(issued.Status.Token)
		}
	}
	return files, nil
}

func (n *Node) environment(object *corev1.Pod, address string) map[string]string {
	environment := map[string]string{
		"PATH": os.Getenv("PATH"),
		// There is no kube-proxy, so not the address of the Service.
		"KUBERNETES_SERVICE_HOST": n.apiHost,
		"KUBERNETES_SERVICE_PORT": apiPort,
		"HOSTNAME":                object.Name,
	}
	for _, variable := range object.Spec.Containers[0].Env {
		value := variable.Value
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
		environment[variable.Name] = value
	}
	return environment
}

// probe is whether the container answers as its startup probe, or without one its readiness probe, wants it.
func (p *pod) probe(object *corev1.Pod) bool {
	container := object.Spec.Containers[0]
	probe := container.StartupProbe
	if probe == nil {
		probe = container.ReadinessProbe
	}
	if probe == nil || probe.HTTPGet == nil {
		return p.listens()
	}
	port := probe.HTTPGet.Port
	number := port.IntValue()
	if port.Type == intstr.String {
		for _, named := range container.Ports {
			if named.Name == port.StrVal {
				number = int(named.ContainerPort)
			}
		}
	}
	client := http.Client{Timeout: time.Second}
	response, err := client.Get("http://" + p.address + ":" + strconv.Itoa(number) + probe.HTTPGet.Path)
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}
