package conformance

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"snigate.dev/conformance/rig"
)

const className = "snigate"

// The controller's metrics are looked at; it listens where Gateways tell it to.
const base = `
admin: 127.0.0.1:9443
`

// What is shipped: the class, and an account that may do what snigate needs and nothing else.
const (
	shipped   = "../../deploy/kubernetes/gateway"
	namespace = "snigate"
	account   = "snigate-gateway"
)

// implementation is a cluster with the Gateway API, and snigate as its implementation.
type implementation struct {
	cluster *rig.Cluster
	admin   kubectl
	router  *rig.Process
	client  client.Client
}

// newImplementation runs `snigate gateway` beside the cluster, with the account that is shipped.
func newImplementation(t *testing.T, name, address string, options ...string) *implementation {
	t.Helper()
	made := newCluster(t, name, address)
	arguments := []string{"gateway", "-c", write(t, "base.yaml", base), "--kubeconfig", made.install(t),
		"--publish-address", rig.GatewayAddress}
	made.router = router(t, append(arguments, options...)...)
	made.awaitClass(t)
	return made
}

// newCluster has the Gateway API, and nothing that implements it.
func newCluster(t *testing.T, name, address string) *implementation {
	t.Helper()
	if err := exec.Command(snigate(t), "gateway", "--help").Run(); err != nil {
		t.Skip("NOT RUN: this snigate was built without the feature gateway")
	}
	cluster, err := rig.StartCluster(name, nil, address)
	require.NoError(t, err)
	t.Cleanup(cluster.Stop)
	require.NoError(t, cluster.StartControllers())
	node, err := rig.StartNode(t.Context(), cluster, map[string]string{"snigate": snigate(t)})
	require.NoError(t, err)
	t.Cleanup(node.Stop)

	file, err := cluster.Kubeconfig("admin", cluster.Admin(), cluster.Direct())
	require.NoError(t, err)
	made := &implementation{cluster: cluster, admin: kubectl{file}}
	made.admin.run(t, "apply", "--server-side", "-f", definitions(t))
	made.admin.run(t, "wait", "--for=condition=Established", "crd", "--all", patience)

	made.client, err = client.New(cluster.Config(), client.Options{})
	require.NoError(t, err)
	require.NoError(t, gatewayv1.Install(made.client.Scheme()))
	return made
}

// install applies what is shipped, and returns a kubeconfig for the account.
func (i *implementation) install(t *testing.T) string {
	t.Helper()
	i.admin.run(t, "create", "namespace", namespace)
	i.admin.run(t, "apply", "-n", namespace, "-k", shipped+"/common")
	token := strings.TrimSpace(i.admin.run(t, "create", "token", "-n", namespace, account))
	file, err := i.cluster.Kubeconfig(account, &api.AuthInfo{Token: token}, i.cluster.Direct())
	require.NoError(t, err)
	// Its Lease is in the namespace of the context.
	kubectl{file}.run(t, "config", "set-context", "--current", "--namespace="+namespace)
	return file
}

// definitions is the directory of the Gateway API's own, of the standard channel.
func definitions(t *testing.T) string {
	t.Helper()
	directory, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	require.NoError(t, err)
	return filepath.Join(strings.TrimSpace(string(directory)), "config", "crd", "standard")
}

// awaitClass returns when the class says what the implementation supports: the suite asks for that once.
func (i *implementation) awaitClass(t *testing.T) {
	t.Helper()
	var class gatewayv1.GatewayClass
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		if err := i.client.Get(ctx, client.ObjectKey{Name: className}, &class); err != nil {
			return false, err
		}
		return meta.IsStatusConditionTrue(class.Status.Conditions, string(gatewayv1.GatewayClassConditionStatusAccepted)), nil
	})
	require.NoError(t, err, fmt.Sprintf("the class is not accepted: %+v", class.Status))
}
