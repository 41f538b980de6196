package conformance

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd/api"

	"snigate.dev/conformance/rig"
)

const (
	edge        = rig.GatewayAddress + ":6443"
	first       = "first.example.com"
	second      = "second.example.com"
	listObjects = 1000
)

const clusters = `
listen: ` + edge + `
admin: 127.0.0.1:9443
routes:
  - sni: ` + first + `
    upstream:
      endpoints: ["10.99.1.1:6443", "10.99.1.2:6443"]
      health_check:
        interval: 500ms
        timeout: 400ms
        rise: 1
        fall: 1
        tls: {ca_file: %s, server_name: kubernetes}
        http: {path: /readyz}
  - sni: ` + second + `
    upstream: 10.99.1.3:6443
`

const echoDeployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 1
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      containers:
        - name: echo
          image: echo-basic
          env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
`

// two is a router in front of two clusters, of which the first has two API servers and a node.
type two struct {
	router        *rig.Process
	first, second *rig.Cluster
	// In the first, through the router.
	admin kubectl
	pod   string
}

func newTwo(t *testing.T) *two {
	var edges two
	var err error
	edges.first, err = rig.StartCluster("first", []string{first}, "10.99.1.1", "10.99.1.2")
	require.NoError(t, err)
	t.Cleanup(edges.first.Stop)
	edges.second, err = rig.StartCluster("second", []string{second}, "10.99.1.3")
	require.NoError(t, err)
	t.Cleanup(edges.second.Stop)
	require.NoError(t, edges.first.StartControllers())
	node, err := rig.StartNode(t.Context(), edges.first, nil)
	require.NoError(t, err)
	t.Cleanup(node.Stop)

	config := write(t, "snigate.yaml", fmt.Sprintf(clusters, edges.first.CA.File()))
	edges.router = router(t, "run", "-c", config, "--log-format", "json")
	require.NoError(t, edges.router.Wait(`"message":"listening"`, 2))

	edges.admin = through(t, edges.first, first, "admin", edges.first.Admin())
	edges.admin.feed(t, echoDeployment, "apply", "-f", "-")
	edges.admin.run(t, "rollout", "status", "deployment/echo", patience)
	edges.pod = edges.admin.run(t, "get", "pods", "-l", "app=echo", "-o", "jsonpath={.items[0].metadata.name}")
	return &edges
}

// through is kubectl by the router.
func through(t *testing.T, cluster *rig.Cluster, name, user string, who *api.AuthInfo) kubectl {
	t.Helper()
	file, err := cluster.Kubeconfig(user+"-through", who, cluster.Through(edge, name))
	require.NoError(t, err)
	return kubectl{file}
}

func TestKubectl(t *testing.T) {
	edges := newTwo(t)
	t.Run("exec", edges.exec)
	t.Run("logs follow", edges.logs)
	t.Run("port-forward", edges.portForward)
	t.Run("watch", edges.watch)
	t.Run("a large list", edges.largeList)
	t.Run("client certificates and tokens", edges.users)
	t.Run("two clusters at one address", edges.apart)
	t.Run("reloads and an upgrade", edges.reloads)
	t.Run("an API server is restarted", edges.restart)
}

func (e *two) exec(t *testing.T) {
	for _, protocol := range []string{"true", "false"} {
		// WebSocket, and SPDY.
		t.Setenv("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", protocol)
		printed := e.admin.feed(t, "through the router", "exec", "-i", e.pod, "--", "sh", "-c", "cat; ip -o -4 address show")
		require.Contains(t, printed, "through the router")
		address := e.admin.run(t, "get", "pod", e.pod, "-o", "jsonpath={.status.podIP}")
		require.Contains(t, printed, address, "the command runs in the pod")

		megabytes := strings.Repeat("0123456789abcde\n", 1<<18)
		require.Equal(t, megabytes, e.admin.feed(t, megabytes, "exec", "-i", e.pod, "--", "cat"))

		failing := e.admin.command("exec", e.pod, "--", "sh", "-c", "exit 7")
		require.Error(t, failing.Run())
		require.Equal(t, 7, failing.ProcessState.ExitCode())
	}
}

func (e *two) logs(t *testing.T) {
	following := e.admin.beside(t, "logs", "-f", e.pod)
	require.NoError(t, following.Wait("Starting server, listening on port 3000", 1))
	e.get(t, "/followed")
	require.NoError(t, following.Wait("Echoing back request made to /followed", 1))
}

// get asks the pod itself for a path.
func (e *two) get(t *testing.T, path string) {
	t.Helper()
	address := e.admin.run(t, "get", "pod", e.pod, "-o", "jsonpath={.status.podIP}")
	response, err := http.Get("http://" + address + ":3000" + path)
	require.NoError(t, err)
	response.Body.Close()
}

func (e *two) portForward(t *testing.T) {
	for _, protocol := range []string{"true", "false"} {
		t.Setenv("KUBECTL_PORT_FORWARD_WEBSOCKETS", protocol)
		forwarding := e.admin.beside(t, "port-forward", e.pod, ":3000")
		require.Equal(t, e.pod, echoedBy(t, forwardedTo(t, forwarding)))
	}
}

// forwardedTo is the address at which port-forward listens.
func forwardedTo(t *testing.T, forwarding *rig.Process) string {
	t.Helper()
	require.NoError(t, forwarding.Wait(" -> 3000", 1))
	return regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(forwarding.Printed())
}

// echoedBy is the name of the pod that answers at an address.
func echoedBy(t *testing.T, address string) string {
	t.Helper()
	response, err := http.Get("http://" + address)
	require.NoError(t, err)
	defer response.Body.Close()
	var answer struct{ Pod string }
	require.NoError(t, json.NewDecoder(response.Body).Decode(&answer))
	return answer.Pod
}

func (e *two) watch(t *testing.T) {
	watching := e.admin.beside(t, "get", "configmaps", "--watch-only", "-o", "name")
	// A watch says nothing until something changes.
	for i := 0; !strings.Contains(watching.Printed(), "watched"); i++ {
		require.Less(t, i, 100, watching.Printed())
		e.admin.run(t, "create", "configmap", fmt.Sprint("watched-", i))
	}
	e.admin.run(t, "create", "configmap", "the-last")
	require.NoError(t, watching.Wait("the-last", 1))
}

func (e *two) largeList(t *testing.T) {
	var manifests strings.Builder
	for i := range listObjects {
		fmt.Fprintf(&manifests, "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: large-%d, labels: {large: \"\"}}\n"+
			"data: {content: %q}\n", i, strings.Repeat("x", 10_000))
	}
	direct, err := e.first.Kubeconfig("direct", e.first.Admin(), e.first.Direct())
	require.NoError(t, err)
	kubectl{direct}.feed(t, manifests.String(), "create", "-f", "-")
	for _, chunk := range []string{"0", "100"} {
		printed := e.admin.run(t, "get", "configmaps", "-l", "large", "-o", "json", "--chunk-size="+chunk)
		require.Greater(t, len(printed), listObjects*10_000)
		var list struct{ Items []json.RawMessage }
		require.NoError(t, json.Unmarshal([]byte(printed), &list))
		require.Len(t, list.Items, listObjects)
	}
}

func (e *two) users(t *testing.T) {
	pair, err := e.first.CA.Client("jane", "developers")
	require.NoError(t, err)
	jane := through(t, e.first, first, "jane", e.first.User("jane", pair))
	require.Contains(t, jane.run(t, "auth", "whoami"), "jane")

	e.admin.run(t, "create", "serviceaccount", "robot")
	token := strings.TrimSpace(e.admin.run(t, "create", "token", "robot"))
	robot := through(t, e.first, first, "robot", &api.AuthInfo{Token: token})
	require.Contains(t, robot.run(t, "auth", "whoami"), "system:serviceaccount:default:robot")

	refused := jane.command("get", "secrets")
	printed, err := refused.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(printed), `User "jane" cannot list resource "secrets"`)
}

func (e *two) apart(t *testing.T) {
	other := through(t, e.second, second, "admin", e.second.Admin())
	other.run(t, "create", "configmap", "only-in-the-second")
	require.Contains(t, other.run(t, "get", "configmaps", "-o", "name"), "only-in-the-second")
	require.NotContains(t, e.admin.run(t, "get", "configmaps", "-o", "name"), "only-in-the-second")

	_, err := tls.Dial("tcp", edge, &tls.Config{ServerName: "third.example.com", InsecureSkipVerify: true})
	require.ErrorContains(t, err, "unrecognized name")
}

// streams are those that live for hours, and something to see that they do.
type streams struct {
	exec, logs, watch *rig.Process
	forwarded         *http.Client
	address           string
}

func (e *two) streams(t *testing.T) *streams {
	forwarding := e.admin.beside(t, "port-forward", e.pod, ":3000")
	opened := &streams{
		exec:  e.admin.beside(t, "exec", "-i", e.pod, "--", "cat"),
		logs:  e.admin.beside(t, "logs", "-f", e.pod),
		watch: e.admin.beside(t, "get", "pods", "--watch", "-o", "name"),
		// One connection, and so one stream in that of port-forward.
		forwarded: &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}, Timeout: 10 * time.Second},
		address:   forwardedTo(t, forwarding),
	}
	require.NoError(t, opened.watch.Wait(e.pod, 1))
	return opened
}

// live is whether each of them carries bytes, there and back.
func (s *streams) live(t *testing.T, e *two, round string) {
	t.Helper()
	require.NoError(t, s.exec.Input(round))
	require.NoError(t, s.exec.Wait(round+"\n", 1))
	response, err := s.forwarded.Get("http://" + s.address + "/" + round)
	require.NoError(t, err)
	_, _ = io.Copy(io.Discard, response.Body)
	response.Body.Close()
	require.NoError(t, s.logs.Wait("made to /"+round+" ", 1))
	e.admin.run(t, "annotate", "pod", e.pod, "--overwrite", "round="+round)
	require.NoError(t, s.watch.Wait(e.pod, strings.Count(s.watch.Printed(), e.pod)))
}

func (e *two) reloads(t *testing.T) {
	open := e.streams(t)
	open.live(t, e, "before")
	for i := range 20 {
		require.NoError(t, e.router.Signal(syscall.SIGHUP))
		require.NoError(t, e.router.Wait(`"message":"reloaded"`, i+1))
		open.live(t, e, fmt.Sprint("reload-", i))
	}
	require.NoError(t, e.router.Signal(syscall.SIGUSR2))
	require.NoError(t, e.router.Wait(`"message":"upgraded; the new process serves"`, 1))
	open.live(t, e, "upgraded")
	// All connections have moved, and the old process is gone.
	require.NoError(t, e.router.Wait(`"message":"drained"`, 1))
	open.live(t, e, "alone")
}

func (e *two) restart(t *testing.T) {
	server := e.first.Servers[0]
	// Enough for both servers to have one: clients go where there are fewer.
	watches := make([]*rig.Process, 4)
	for i := range watches {
		watches[i] = e.admin.beside(t, "get", "pods", "--watch", "-o", "name")
		require.NoError(t, watches[i].Wait(e.pod, 1))
	}

	gone := server.Terminate()
	for status := http.StatusOK; status != http.StatusInternalServerError; {
		var err error
		status, err = server.Ready()
		require.NoError(t, err, "it says that it is not ready, before it refuses connections")
	}
	require.NoError(t, e.router.Wait(`"message":"endpoint is unready"`, 1))
	// What is open stays open.
	e.admin.run(t, "annotate", "pod", e.pod, "--overwrite", "round=unready")
	for _, watching := range watches {
		require.NoError(t, watching.Wait(e.pod, 2))
	}
	// And nothing new sees anything of it.
	commands := 0
	for ended := false; !ended; commands++ {
		select {
		case <-gone:
			ended = true
		default:
		}
		e.admin.run(t, "get", "namespaces", "default")
	}
	require.NoError(t, server.Start())
	require.NoError(t, e.router.Wait(`"message":"endpoint is ready"`, 1))
	e.admin.run(t, "get", "namespaces", "default")
	t.Logf("%d commands during the restart, none failed", commands)
}
