package rig

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

// components are the programs that this binary is when it is called by their names.
var components = map[string]func() int{
	"kube-apiserver":          func() int { return cli.Run(apiserver.NewAPIServerCommand()) },
	"kube-controller-manager": func() int { return cli.Run(controllers.NewControllerManagerCommand()) },
	"kubectl": func() int {
		util.CheckErr(cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()))
		return 0
	},
}

// Component is a child process that is one of the components.
type Component struct {
	command *exec.Cmd
	log     string
	ended   chan struct{}
}

// start runs a component that writes its log to a file of the given name.
func start(component, name string, arguments ...string) (*Component, error) {
	log, err := os.OpenFile(filepath.Join(Directory(), name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	command := Command(component, arguments...)
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		return nil, err
	}
	started := &Component{command: command, log: log.Name(), ended: make(chan struct{})}
	go func() {
		_ = command.Wait()
		close(started.ended)
	}()
	return started, nil
}

// Command is a component to be run: "kubectl", for example.
func Command(component string, arguments ...string) *exec.Cmd {
	command := exec.Command("/proc/self/exe", arguments...)
	command.Args[0] = component
	// kubectl has a cache and asks for a home; the rest does not mind.
	command.Env = append(os.Environ(), "HOME="+Directory())
	return command
}

// Stop asks the component to end, and waits until it has.
func (c *Component) Stop() {
	_ = c.command.Process.Signal(syscall.SIGTERM)
	<-c.ended
}

// Kill ends the component at once.
func (c *Component) Kill() {
	_ = c.command.Process.Kill()
	<-c.ended
}

// Pid is the id of its process.
func (c *Component) Pid() int {
	return c.command.Process.Pid
}

// answers waits until a GET of the URL is answered with 200.
func (c *Component) answers(ctx context.Context, client *http.Client, url string) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	last := "no answer"
	for {
		response, err := client.Get(url)
		if err == nil {
			body, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
			last = fmt.Sprintf("%s: %s", response.Status, body)
		}
		select {
		case <-c.ended:
			return fmt.Errorf("%s has ended: see its log:\n%s", c.command.Args[0], tail(c.log))
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer 200: %s\n%s", url, last, tail(c.log))
		case <-ticker.C:
		}
	}
}

// tail is the end of a file, for messages.
func tail(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-4000):])
}
