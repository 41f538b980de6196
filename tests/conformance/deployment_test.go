package conformance

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
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
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(made.in(t, "get", "pods", "-o", "wide"))
			t.Log(made.in(t, "logs", "-l", "app.kubernetes.io/name="+account, "--prefix", "--tail=-1"))
		}
	})
	made.admin.run(t, "create", "namespace", namespace)
	made.admin.run(t, "apply", "-k", shipped)
	replicas := made.replicas(t)
	made.awaitClass(t)

	made.publish(t, balancer)
	made.admin.feed(t, loadGateway, "apply", "-f", "-")
	made.awaitGateway(t, "load", balancer)
	for _, address := range replicas {
		require.NoError(t, follow(t.Context(), address+":443", "first.load.example.com", "a"))
	}

	holder := made.holder(t)
	require.Contains(t, replicas, holder)
	made.in(t, "delete", "pod", holder, "--grace-period=0", "--force", "--wait=false")
	made.admin.feed(t, another, "apply", "-f", "-")
	for name, address := range replicas {
		if name != holder {
			require.NoError(t, follow(t.Context(), address+":443", "another.load.example.com", "a"), "the other replica serves")
		}
	}
	made.admin.run(t, "wait", "tlsroute/another", patience,
		"--for=jsonpath={.status.parents[0].conditions[?(@.type=='Accepted')].status}=True")
	require.NotEqual(t, holder, made.holder(t))
	replicas = made.replicas(t)
	require.NotContains(t, replicas, holder)
	for _, address := range replicas {
		require.NoError(t, follow(t.Context(), address+":443", "another.load.example.com", "a"), "%v", replicas)
	}
}

// in is kubectl in the namespace of what is shipped.
func (i *implementation) in(t *testing.T, arguments ...string) string {
	t.Helper()
	return i.admin.run(t, append([]string{"-n", namespace}, arguments...)...)
}

// replicas waits for two, and returns their addresses by their names. Not by the status of the Deployment, in which a pod
// that was just killed still counts.
func (i *implementation) replicas(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, 2*time.Minute, true, func(ctx context.Context) (bool, error) {
		var pods corev1.PodList
		clear(found)
		err := i.client.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels{"app.kubernetes.io/name": account})
		for _, pod := range pods.Items {
			if pod.DeletionTimestamp == nil && isReady(&pod) {
				found[pod.Name] = pod.Status.PodIP
			}
		}
		return len(found) == 2, err
	})
	require.NoError(t, err, "two replicas are ready: %v", found)
	return found
}

func isReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// publish gives the Service an address. Nothing else here does so for the type LoadBalancer.
func (i *implementation) publish(t *testing.T, address string) {
	t.Helper()
	i.in(t, "patch", "service", account, "--subresource=status", "--type=merge",
		"-p", `{"status":{"loadBalancer":{"ingress":[{"ip":"`+address+`"}]}}}`)
}

// awaitGateway returns when a Gateway is served at an address. It may have none yet: the Service is watched apart from it.
func (i *implementation) awaitGateway(t *testing.T, name, address string) {
	t.Helper()
	i.admin.run(t, "wait", "gateway/"+name, "--for=condition=Programmed", patience)
	require.Equal(t, address, i.admin.run(t, "get", "gateway/"+name, "-o", "jsonpath={.status.addresses[*].value}"))
}

// holder is the replica that writes status. Its identity is the name of the pod, and something random.
func (i *implementation) holder(t *testing.T) string {
	t.Helper()
	identity := i.in(t, "get", "lease", "snigate.dev-gateway", "-o", "jsonpath={.spec.holderIdentity}")
	return identity[:strings.LastIndex(identity, "-")]
}
