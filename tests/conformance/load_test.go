package conformance

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"snigate.dev/conformance/rig"
)

const (
	loadRoutes    = 1000
	loadPerSecond = 20
	loadEdge      = rig.GatewayAddress + ":443"
	// How long a change may take to be followed, before it counts as lost.
	loadPatience = 20 * time.Second
)

const loadGateway = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: load}
spec:
  gatewayClassName: ` + className + `
  listeners:
    - {name: tls, port: 443, protocol: TLS, tls: {mode: Passthrough}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: first}
spec:
  parentRefs: [{name: load}]
  hostnames: [first.load.example.com]
  rules: [{backendRefs: [{name: a, port: 443}]}]
`

const loadBackend = `
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  selector: {app: %[1]s}
  ports: [{port: 443, targetPort: 8443}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: 2
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      volumes: [{name: tls, secret: {secretName: %[1]s}}]
      containers:
        - name: echo
          image: echo-basic
          volumeMounts: [{name: tls, mountPath: /tls}]
          env:
            - {name: TLS_SERVER_CERT, value: /tls/tls.crt}
            - {name: TLS_SERVER_PRIVKEY, value: /tls/tls.key}
`

// TestLoad changes the backends of many routes, and measures when new connections follow.
func TestLoad(t *testing.T) {
	made := newImplementation(t, "load", "10.99.1.12")
	made.backend(t, "a")
	made.backend(t, "b")

	t.Run("ServedWithinASecond", func(t *testing.T) {
		made.admin.feed(t, loadGateway, "apply", "-f", "-")
		applied := time.Now()
		require.NoError(t, follow(t.Context(), loadEdge, "first.load.example.com", "a"))
		t.Logf("served %v after kubectl apply", time.Since(applied).Round(time.Millisecond))
		require.Less(t, time.Since(applied), time.Second)
	})
	t.Run("Changes", made.changes)
}

// backend makes a Service whose pods have a certificate with its name.
func (i *implementation) backend(t *testing.T, name string) {
	t.Helper()
	pair, err := i.cluster.CA.Server(name, "*.load.example.com")
	require.NoError(t, err)
	i.admin.run(t, "create", "secret", "tls", name, "--cert="+pair.Certificate, "--key="+pair.Key)
	i.admin.feed(t, fmt.Sprintf(loadBackend, name), "apply", "-f", "-")
	i.admin.run(t, "rollout", "status", "deployment/"+name, patience)
}

func (i *implementation) changes(t *testing.T) {
	for n := range loadRoutes {
		require.NoError(t, i.client.Create(t.Context(), route(n)))
	}
	require.NoError(t, follow(t.Context(), loadEdge, host(loadRoutes-1), "a"))
	settled(t, i)

	writes, cpu, began := i.writes(t), i.cpu(t), time.Now()
	took := make([]time.Duration, loadRoutes)
	var changing sync.WaitGroup
	ticker := time.NewTicker(time.Second / loadPerSecond)
	defer ticker.Stop()
	for n := range loadRoutes {
		<-ticker.C
		changing.Go(func() {
			patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"rules":[{"backendRefs":[{"name":"b","port":443}]}]}}`))
			sent := time.Now()
			if err := i.client.Patch(t.Context(), route(n), patch); err != nil {
				t.Errorf("%s: %v", host(n), err)
				return
			}
			if err := follow(t.Context(), loadEdge, host(n), "b"); err != nil {
				t.Error(err)
			}
			took[n] = time.Since(sent)
		})
	}
	changing.Wait()
	elapsed := time.Since(began)
	used := i.cpu(t) - cpu
	settled(t, i)

	slices.Sort(took)
	t.Logf("%d changes of %d routes, %d per second: new connections followed after p50 %v, p99 %v, at most %v; "+
		"CPU %.1f %% of a core; %.2f status writes per change",
		loadRoutes, loadRoutes, loadPerSecond, took[loadRoutes/2].Round(time.Millisecond),
		took[loadRoutes*99/100].Round(time.Millisecond), took[loadRoutes-1].Round(time.Millisecond),
		100*used.Seconds()/elapsed.Seconds(), float64(i.writes(t)-writes)/loadRoutes)
}

func host(n int) string {
	return fmt.Sprintf("r%d.load.example.com", n)
}

func route(n int) *gatewayv1.TLSRoute {
	port := gatewayv1.PortNumber(443)
	return &gatewayv1.TLSRoute{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: fmt.Sprint("r", n)},
		Spec: gatewayv1.TLSRouteSpec{
			CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: []gatewayv1.ParentReference{{Name: "load"}}},
			Hostnames:       []gatewayv1.Hostname{gatewayv1.Hostname(host(n))},
			Rules: []gatewayv1.TLSRouteRule{{BackendRefs: []gatewayv1.BackendRef{{
				BackendObjectReference: gatewayv1.BackendObjectReference{Name: "a", Port: &port},
			}}}},
		},
	}
}

// follow connects until the backend with this name answers.
func follow(ctx context.Context, address, host, backend string) error {
	ctx, cancel := context.WithTimeout(ctx, loadPatience)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{ServerName: host, InsecureSkipVerify: true}}
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	last := ""
	for {
		connection, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			last = connection.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
			connection.Close()
			if last == backend {
				return nil
			}
		} else {
			last = err.Error()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not served by %s after %v: %s", host, backend, loadPatience, last)
		case <-ticker.C:
		}
	}
}

// settled waits until all routes have a status of their latest generation.
func settled(t *testing.T, i *implementation) {
	t.Helper()
	require.Eventually(t, func() bool {
		var routes gatewayv1.TLSRouteList
		require.NoError(t, i.client.List(t.Context(), &routes))
		return !slices.ContainsFunc(routes.Items, func(route gatewayv1.TLSRoute) bool {
			return len(route.Status.Parents) != 1 || slices.ContainsFunc(route.Status.Parents[0].Conditions,
				func(condition metav1.Condition) bool { return condition.ObservedGeneration != route.Generation })
		})
	}, time.Minute, 200*time.Millisecond, "all routes have a status of their latest generation")
}

// writes is how often a status of the Gateway API has been written, and an event, by the count of the API server.
func (i *implementation) writes(t *testing.T) int {
	t.Helper()
	return i.requests(t, func(line string) bool {
		status := strings.Contains(line, `group="gateway.networking.k8s.io"`) && strings.Contains(line, `subresource="status"`)
		event := strings.Contains(line, `resource="events"`)
		reads := strings.Contains(line, `verb="GET"`) || strings.Contains(line, `verb="LIST"`) || strings.Contains(line, `verb="WATCH"`)
		return !reads && (status || event)
	})
}

// requests is how many of a kind there were, by the count of the API server.
func (i *implementation) requests(t *testing.T, accept func(line string) bool) int {
	t.Helper()
	clients, err := kubernetes.NewForConfig(i.cluster.Config())
	require.NoError(t, err)
	metrics, err := clients.RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	require.NoError(t, err)
	count := 0
	lines := bufio.NewScanner(strings.NewReader(string(metrics)))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if !strings.HasPrefix(line, "apiserver_request_total{") || !accept(line) {
			continue
		}
		number, err := strconv.ParseFloat(line[strings.LastIndex(line, " ")+1:], 64)
		require.NoError(t, err)
		count += int(number)
	}
	return count
}

// cpu is the time of all threads of the router.
func (i *implementation) cpu(t *testing.T) time.Duration {
	t.Helper()
	const ticksPerSecond = 100
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", i.router.Pid()))
	require.NoError(t, err)
	// The name of the program, in parentheses, may have spaces.
	fields := strings.Fields(string(content[strings.LastIndex(string(content), ")")+1:]))
	var ticks int
	for _, field := range fields[11:13] {
		number, err := strconv.Atoi(field)
		require.NoError(t, err)
		ticks += number
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond
}
