package conformance

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	balancer = "10.99.3.1"
	another  = `
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: another}
spec:
  parentRefs: [{name: load}]
  hostnames: [another.load.example.com]
  rules: [{backendRefs: [{name: a, port: 443}]}]
`
)

// TestDeployment applies what is shipped, and kills the replica that writes status.
func TestDeployment(t *testing.T) {
	made := newCluster(t, "deployment", "10.99.1.13")
	made.backend(t, "a")
	in := func(arguments ...string) string {
		return made.admin.run(t, append([]string{"-n", namespace}, arguments...)...)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(in("get", "pods", "-o", "wide"))
			t.Log(in("logs", "-l", "app.kubernetes.io/name="+account, "--prefix", "--tail=-1"))
		}
	})
	made.admin.run(t, "create", "namespace", namespace)
	made.admin.run(t, "apply", "-k", shipped)
	in("rollout", "status", "deployment/"+account, "--timeout=120s")
	made.awaitClass(t)

	// Nothing else here gives Services of type LoadBalancer an address.
	in("patch", "service", account, "--subresource=status", "--type=merge",
		"-p", `{"status":{"loadBalancer":{"ingress":[{"ip":"`+balancer+`"}]}}}`)
	made.admin.feed(t, loadGateway, "apply", "-f", "-")
	made.admin.run(t, "wait", "gateway/load", "--for=jsonpath={.status.addresses[0].value}="+balancer, "--timeout=60s")
	replicas := addresses(in)
	require.Len(t, replicas, 2)
	for _, address := range replicas {
		require.NoError(t, follow(t.Context(), address, "first.load.example.com", "a"))
	}

	// The name of the pod, and something random.
	identity := in("get", "lease", "snigate.dev-gateway", "-o", "jsonpath={.spec.holderIdentity}")
	holder := identity[:strings.LastIndex(identity, "-")]
	require.Contains(t, replicas, holder)
	in("delete", "pod", holder, "--grace-period=0", "--force", "--wait=false")
	made.admin.feed(t, another, "apply", "-f", "-")
	for name, address := range replicas {
		if name != holder {
			require.NoError(t, follow(t.Context(), address, "another.load.example.com", "a"), "the other replica serves")
		}
	}
	made.admin.run(t, "wait", "tlsroute/another", "--timeout=60s",
		"--for=jsonpath={.status.parents[0].conditions[?(@.type=='Accepted')].status}=True")
	in("rollout", "status", "deployment/"+account, "--timeout=120s")
	replicas = addresses(in)
	require.Len(t, replicas, 2)
	for _, address := range replicas {
		require.NoError(t, follow(t.Context(), address, "another.load.example.com", "a"), "%v", replicas)
	}
}

// addresses are those of the replicas that are not about to go, by their names.
func addresses(in func(...string) string) map[string]string {
	found := map[string]string{}
	lines := in("get", "pods", "-l", "app.kubernetes.io/name="+account,
		"-o", `jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.metadata.deletionTimestamp}{"\n"}{end}`)
	for line := range strings.Lines(lines) {
		if fields := strings.Fields(line); len(fields) == 2 {
			found[fields[0]] = fields[1]
		}
	}
	return found
}
