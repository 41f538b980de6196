package rig

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

const (
	streamIdle     = 4 * time.Hour
	streamCreation = 30 * time.Second
)

// serveKubelet answers what an API server asks a node for: logs, exec and port-forward. It demands a client certificate
// of the cluster.
func (n *Node) serveKubelet(authority *Authority) error {
	pair, err := authority.Server("kubelet", NodeAddress, nodeName)
	if err != nil {
		return err
	}
	certificate, err := tls.LoadX509KeyPair(pair.Certificate, pair.Key)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("%s:%d", NodeAddress, kubeletPort))
	if err != nil {
		return err
	}
	routes := http.NewServeMux()
	routes.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", n.logs)
	routes.HandleFunc("/exec/{namespace}/{pod}/{container}", n.exec)
	routes.HandleFunc("/portForward/{namespace}/{pod}", n.portForward)
	n.server = &http.Server{
		Handler:           routes,
		ReadHeaderTimeout: streamCreation,
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{certificate},
			ClientCAs:    authority.Pool(),
			ClientAuth:   tls.RequireAndVerifyClientCert,
			// Upgrades are a matter of HTTP/1.1.
			NextProtos: []string{"http/1.1"},
		},
	}
	n.ended.Go(func() {
		if err := n.server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			fmt.Println("rig: the kubelet:", err)
		}
	})
	return nil
}

func (n *Node) logs(w http.ResponseWriter, r *http.Request) {
	found := n.find(r.PathValue("namespace"), r.PathValue("pod"))
	if found == nil {
		http.Error(w, "no such pod", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	defer context.AfterFunc(r.Context(), found.log.wake)()
	gone := func() bool { return r.Context().Err() != nil }
	_ = found.log.copyTo(flushed{w}, r.FormValue("follow") == "true", gone)
}

// flushed sends what is written at once.
type flushed struct{ http.ResponseWriter }

func (f flushed) Write(content []byte) (int, error) {
	written, err := f.ResponseWriter.Write(content)
	if err == nil {
		err = http.NewResponseController(f.ResponseWriter).Flush()
	}
	return written, err
}

func (n *Node) exec(w http.ResponseWriter, r *http.Request) {
	found := n.find(r.PathValue("namespace"), r.PathValue("pod"))
	if found == nil {
		http.Error(w, "no such pod", http.StatusNotFound)
		return
	}
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, found, r.PathValue("pod"), string(found.uid), r.PathValue("container"),
		r.URL.Query()["command"], options, streamIdle, streamCreation, remotecommand.SupportedStreamingProtocols)
}

func (n *Node) portForward(w http.ResponseWriter, r *http.Request) {
	found := n.find(r.PathValue("namespace"), r.PathValue("pod"))
	if found == nil {
		http.Error(w, "no such pod", http.StatusNotFound)
		return
	}
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, found, r.PathValue("pod"), string(found.uid), options, streamIdle, streamCreation,
		portforward.SupportedProtocols)
}

// ExecInContainer runs a command in the network of the pod; its files are those of the rig.
func (p *pod) ExecInContainer(ctx context.Context, _, _, _ string, arguments []string, in io.Reader, out, err io.WriteCloser,
	tty bool, _ <-chan remotecommand.TerminalSize, _ time.Duration,
) error {
	if tty {
		return errors.New("the rig has no terminals")
	}
	command := p.inside(arguments...)
	if in != nil {
		// Not command.Stdin: Wait would wait for an end of the input, too.
		pipe, failed := command.StdinPipe()
		if failed != nil {
			return failed
		}
		go func() {
			_, _ = io.Copy(pipe, in)
			_ = pipe.Close()
		}()
	}
	if out != nil {
		command.Stdout = out
	}
	if err != nil {
		command.Stderr = err
	}
	if failed := command.Start(); failed != nil {
		return failed
	}
	defer context.AfterFunc(ctx, func() { _ = command.Process.Kill() })()
	failed := command.Wait()
	var status *exec.ExitError
	if errors.As(failed, &status) {
		return utilexec.CodeExitError{Err: failed, Code: status.ExitCode()}
	}
	return failed
}

// PortForward connects a stream to a port of the pod.
func (p *pod) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", p.address, port))
	if err != nil {
		return err
	}
	defer connection.Close()
	go func() {
		_, _ = io.Copy(connection, stream)
		_ = connection.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(stream, connection)
	return err
}
