package conformance

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"snigate.dev/conformance/rig"
)

// Its Service need not exist: clients are refused, and it has a status.
const ingress = `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: %[1]s
  annotations: {nginx.ingress.kubernetes.io/ssl-passthrough: "true"}
spec:
  ingressClassName: %[2]s
  rules:
    - host: %[1]s.example.com
      http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: a, port: {number: 443}}}}]}
`

// TestIngress looks at whether the API server notes who has set addresses as snigate expects it.
func TestIngress(t *testing.T) {
	made := newImplementation(t, "ingress", "10.99.1.16", "--ingress-class", "nginx")
	apply := func(name, class string) { made.admin.feed(t, fmt.Sprintf(ingress, name, class), "apply", "-f", "-") }
	addresses := func(name string) string {
		return made.admin.run(t, "get", "ingress", name, "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
	}
	become := func(name, expected string) {
		require.Eventually(t, func() bool { return addresses(name) == expected }, time.Minute, 50*time.Millisecond, name)
	}
	// With the same address, but from another controller.
	apply("foreign", "other")
	made.admin.run(t, "patch", "ingress", "foreign", "--subresource=status", "--type=merge",
		"-p", `{"status":{"loadBalancer":{"ingress":[{"ip":"`+rig.GatewayAddress+`"}]}}}`)
	for _, name := range []string{"stays", "leaves", "declines"} {
		apply(name, "nginx")
		become(name, rig.GatewayAddress)
	}
	writes := func() int {
		return made.requests(t, func(line string) bool {
			return strings.Contains(line, `resource="ingresses"`) && strings.Contains(line, `subresource="status"`)
		})
	}
	before := writes()
	apply("leaves", "other")
	become("leaves", "")
	made.admin.run(t, "annotate", "ingress", "declines", "nginx.ingress.kubernetes.io/ssl-passthrough-")
	become("declines", "")
	apply("last", "nginx")
	become("last", rig.GatewayAddress)
	require.Equal(t, 3, writes()-before, "each is written once")
	require.Equal(t, rig.GatewayAddress, addresses("stays"))
	require.Equal(t, rig.GatewayAddress, addresses("foreign"))
	require.False(t, strings.Contains(made.router.Printed(), "not written"), made.router.Printed())
}
