package conformance

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/utils/http"
	"sigs.k8s.io/gateway-api/conformance/utils/kubernetes"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/conformance/utils/tls"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// twins are the skipped tests, with listeners for TLS. They run in the suite's frame, and are not in its report.
var twins = []suite.ConformanceTest{
	twin("TLSListenerUnsupportedProtocol", "unsupported-protocol", unsupportedProtocol),
	twin("TLSListenerInvalidRouteKind", "invalid-route-kind", invalidRouteKind),
	twin("TLSListenerInvalidConfiguration", "invalid-tls-configuration", invalidTLSConfiguration),
	twin("TLSListenersModified", "modify-listeners", modifyListeners),
	twin("TLSGatewayObservedGenerationBump", "observed-generation-bump", observedGenerationBump),
	twin("TLSRouteReferenceGrant", "reference-grant", referenceGrant),
}

func twin(name, manifest string, test func(*testing.T, *suite.ConformanceTestSuite)) suite.ConformanceTest {
	return suite.ConformanceTest{
		ShortName:   name,
		Description: "as its namesake, with listeners for TLS",
		Features:    []features.FeatureName{features.SupportGateway, features.SupportTLSRoute},
		Manifests:   []string{"twins/" + manifest + ".yaml"},
		Test:        test,
	}
}

func infrastructure(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: suite.InfrastructureNamespace, Name: name}
}

func unsupportedProtocol(t *testing.T, s *suite.ConformanceTestSuite) {
	unsupported := func(name gatewayv1.SectionName) gatewayv1.ListenerStatus {
		return listener(name, nil, condition(gatewayv1.ListenerConditionAccepted, metav1.ConditionFalse, gatewayv1.ListenerReasonUnsupportedProtocol))
	}
	none := infrastructure("twin-only-unsupported-protocols")
	kubernetes.GatewayMustHaveLatestConditions(t, s.Client, s.TimeoutConfig, none)
	kubernetes.GatewayMustHaveCondition(t, s.Client, s.TimeoutConfig, none,
		condition(gatewayv1.GatewayConditionAccepted, metav1.ConditionFalse, gatewayv1.GatewayReasonListenersNotValid))
	kubernetes.GatewayStatusMustHaveListeners(t, s.Client, s.TimeoutConfig, none,
		[]gatewayv1.ListenerStatus{unsupported("http"), unsupported("invalid")})

	some := infrastructure("twin-unsupported-protocol")
	kubernetes.GatewayMustHaveLatestConditions(t, s.Client, s.TimeoutConfig, some)
	kubernetes.GatewayMustHaveCondition(t, s.Client, s.TimeoutConfig, some,
		condition(gatewayv1.GatewayConditionAccepted, metav1.ConditionTrue, gatewayv1.GatewayReasonListenersNotValid))
	kubernetes.GatewayStatusMustHaveListeners(t, s.Client, s.TimeoutConfig, some,
		[]gatewayv1.ListenerStatus{accepted("tls", 0), unsupported("http"), unsupported("invalid")})
}

func invalidRouteKind(t *testing.T, s *suite.ConformanceTestSuite) {
	invalid := condition(gatewayv1.ListenerConditionResolvedRefs, metav1.ConditionFalse, gatewayv1.ListenerReasonInvalidRouteKinds)
	kubernetes.GatewayStatusMustHaveListeners(t, s.Client, s.TimeoutConfig, infrastructure("twin-only-invalid-kind"),
		[]gatewayv1.ListenerStatus{listener("tls", nil, invalid)})
	kubernetes.GatewayStatusMustHaveListeners(t, s.Client, s.TimeoutConfig, infrastructure("twin-supported-and-invalid-kind"),
		[]gatewayv1.ListenerStatus{listener("tls", tlsRoutes(), invalid)})
}

// invalidTLSConfiguration: where certificates are needed, a reference to any is invalid, as nothing here could read it; the
// listener is not accepted, either. In mode Passthrough they are ignored.
func invalidTLSConfiguration(t *testing.T, s *suite.ConformanceTestSuite) {
	unsupported := condition(gatewayv1.ListenerConditionAccepted, metav1.ConditionFalse, gatewayv1.ListenerReasonUnsupportedValue)
	programmed := condition(gatewayv1.ListenerConditionProgrammed, metav1.ConditionFalse, gatewayv1.ListenerReasonInvalid)
	terminates := func(name gatewayv1.SectionName, status metav1.ConditionStatus, reason gatewayv1.ListenerConditionReason) gatewayv1.ListenerStatus {
		return listener(name, nil, unsupported, condition(gatewayv1.ListenerConditionResolvedRefs, status, reason), programmed)
	}
	none := infrastructure("twin-only-terminate")
	kubernetes.GatewayMustHaveLatestConditions(t, s.Client, s.TimeoutConfig, none)
	kubernetes.GatewayMustHaveCondition(t, s.Client, s.TimeoutConfig, none,
		condition(gatewayv1.GatewayConditionAccepted, metav1.ConditionFalse, gatewayv1.GatewayReasonListenersNotValid))
	kubernetes.GatewayStatusMustHaveListeners(t, s.Client, s.TimeoutConfig, none, []gatewayv1.ListenerStatus{
		terminates("existing", metav1.ConditionFalse, gatewayv1.ListenerReasonInvalidCertificateRef),
		terminates("nonexistent", metav1.ConditionFalse, gatewayv1.ListenerReasonInvalidCertificateRef),
		terminates("kind", metav1.ConditionFalse, gatewayv1.ListenerReasonInvalidCertificateRef),
		terminates("not-granted", metav1.ConditionFalse, gatewayv1.ListenerReasonRefNotPermitted),
		terminates("options", metav1.ConditionTrue, gatewayv1.ListenerReasonResolvedRefs),
	})

	ignored := infrastructure("twin-passthrough-with-certificates")
	kubernetes.GatewayMustHaveLatestConditions(t, s.Client, s.TimeoutConfig, ignored)
	kubernetes.GatewayMustHaveCondition(t, s.Client, s.TimeoutConfig, ignored,
		condition(gatewayv1.GatewayConditionAccepted, metav1.ConditionTrue, gatewayv1.GatewayReasonAccepted))
	kubernetes.GatewayStatusMustHaveListeners(t, s.Client, s.TimeoutConfig, ignored,
		[]gatewayv1.ListenerStatus{accepted("ignored", 0)})

	// The API server itself does not let these in, so that no implementation sees them.
	for name, settings := range map[string]*gatewayv1.ListenerTLSConfig{"without-tls": nil, "without-mode": {}} {
		gateway := &gatewayv1.Gateway{
			ObjectMeta: metav1.ObjectMeta{Namespace: suite.InfrastructureNamespace, Name: "twin-" + name},
			Spec: gatewayv1.GatewaySpec{
				GatewayClassName: gatewayv1.ObjectName(s.GatewayClassName),
				Listeners:        []gatewayv1.Listener{{Name: "tls", Port: 443, Protocol: gatewayv1.TLSProtocolType, TLS: settings}},
			},
		}
		err := s.Client.Create(t.Context(), gateway)
		require.True(t, apierrors.IsInvalid(err), "%s: %v", name, err)
	}
}

func modifyListeners(t *testing.T, s *suite.ConformanceTestSuite) {
	name := infrastructure("twin-modify-listeners")
	address, _ := kubernetes.GatewayAndTLSRoutesMustBeAccepted(t, s.Client, s.TimeoutConfig, s.ControllerName, kubernetes.NewGatewayRef(name), name)
	refused := func(host string) {
		t.Helper()
		tls.MakeTLSConnectionAndExpectEventuallyConnectionRejection(t, s.TimeoutConfig, address, host)
	}
	reached(t, s, address, infrastructure("tls-checks-certificate"), "abc.example.com", suite.InfrastructureNamespace)
	refused("other.example.com")

	before := change(t, s, name, func(gateway *gatewayv1.Gateway) {
		added := *gateway.Spec.Listeners[0].DeepCopy()
		hostname := gatewayv1.Hostname("other.example.com")
		added.Name, added.Hostname = "comes", &hostname
		gateway.Spec.Listeners = append(gateway.Spec.Listeners, added)
	})
	kubernetes.GatewayStatusMustHaveListeners(t, s.Client, s.TimeoutConfig, name,
		[]gatewayv1.ListenerStatus{accepted("stays", 1), accepted("comes", 1)})
	latest(t, s, name, before)
	reached(t, s, address, infrastructure("tls-checks-certificate"), "other.example.com", suite.InfrastructureNamespace)
	reached(t, s, address, infrastructure("tls-checks-certificate"), "abc.example.com", suite.InfrastructureNamespace)

	before = change(t, s, name, func(gateway *gatewayv1.Gateway) {
		gateway.Spec.Listeners = gateway.Spec.Listeners[:1]
	})
	kubernetes.GatewayStatusMustHaveListeners(t, s.Client, s.TimeoutConfig, name,
		[]gatewayv1.ListenerStatus{accepted("stays", 1)})
	latest(t, s, name, before)
	refused("other.example.com")
	reached(t, s, address, infrastructure("tls-checks-certificate"), "abc.example.com", suite.InfrastructureNamespace)
}

func observedGenerationBump(t *testing.T, s *suite.ConformanceTestSuite) {
	name := infrastructure("twin-observed-generation-bump")
	kubernetes.NamespacesMustBeReady(t, s.Client, s.TimeoutConfig, []string{suite.InfrastructureNamespace})
	before := change(t, s, name, func(gateway *gatewayv1.Gateway) {
		hostname := gatewayv1.Hostname("bumped.twins.example.com")
		gateway.Spec.Listeners[0].Hostname = &hostname
	})
	kubernetes.NamespacesMustBeReady(t, s.Client, s.TimeoutConfig, []string{suite.InfrastructureNamespace})
	latest(t, s, name, before)
}

func referenceGrant(t *testing.T, s *suite.ConformanceTestSuite) {
	name := infrastructure("twin-reference-grant")
	other := types.NamespacedName{Namespace: suite.AppBackendNamespace, Name: "tls-passthrough-checks-certificate"}
	address, _ := kubernetes.GatewayAndTLSRoutesMustBeAccepted(t, s.Client, s.TimeoutConfig, s.ControllerName, kubernetes.NewGatewayRef(name), name)
	kubernetes.TLSRouteMustHaveResolvedRefsConditionsTrue(t, s.Client, s.TimeoutConfig, name, name)
	reached(t, s, address, other, "abc.example.com", suite.AppBackendNamespace)

	grant := &gatewayv1.ReferenceGrant{ObjectMeta: metav1.ObjectMeta{Namespace: suite.AppBackendNamespace, Name: name.Name}}
	require.NoError(t, s.Client.Get(t.Context(), client.ObjectKeyFromObject(grant), grant))
	narrow := gatewayv1.ObjectName("another-service")
	grant.Spec.To[0].Name = &narrow
	require.NoError(t, s.Client.Update(t.Context(), grant))
	kubernetes.TLSRouteMustHaveCondition(t, s.Client, s.TimeoutConfig, name, name,
		condition(gatewayv1.RouteConditionResolvedRefs, metav1.ConditionFalse, gatewayv1.RouteReasonRefNotPermitted))
	tls.MakeTLSConnectionAndExpectEventuallyConnectionRejection(t, s.TimeoutConfig, address, "abc.example.com")

	specific := gatewayv1.ObjectName("tls-backend")
	grant.Spec.To[0].Name = &specific
	require.NoError(t, s.Client.Update(t.Context(), grant))
	kubernetes.TLSRouteMustHaveResolvedRefsConditionsTrue(t, s.Client, s.TimeoutConfig, name, name)
	reached(t, s, address, other, "abc.example.com", suite.AppBackendNamespace)
}

// change patches a Gateway, and returns its generation before.
func change(t *testing.T, s *suite.ConformanceTestSuite, name types.NamespacedName, mutate func(*gatewayv1.Gateway)) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.TimeoutConfig.DefaultTestTimeout)
	defer cancel()
	original := &gatewayv1.Gateway{}
	require.NoError(t, s.Client.Get(ctx, name, original))
	changed := original.DeepCopy()
	mutate(changed)
	require.NoError(t, s.Client.Patch(ctx, changed, client.MergeFrom(original)))
	return original.Generation
}

// latest demands that the conditions are those of a generation after the given one.
func latest(t *testing.T, s *suite.ConformanceTestSuite, name types.NamespacedName, before int64) {
	t.Helper()
	kubernetes.GatewayMustHaveLatestConditions(t, s.Client, s.TimeoutConfig, name)
	var gateway gatewayv1.Gateway
	require.NoError(t, s.Client.Get(t.Context(), name, &gateway))
	require.Greater(t, gateway.Generation, before)
}

// reached demands that clients who ask for a name are answered by the backend of a namespace, with this certificate.
func reached(t *testing.T, s *suite.ConformanceTestSuite, address string, secret types.NamespacedName, host, namespace string) {
	t.Helper()
	certificate, _, err := kubernetes.GetTLSSecret(s.Client, secret)
	require.NoError(t, err)
	tls.MakeTLSRequestAndExpectEventuallyConsistentResponse(t, s.RoundTripper, s.TimeoutConfig, address, certificate, nil, nil, host,
		http.ExpectedResponse{
			Request:   http.Request{Host: host, Path: "/"},
			Backend:   "tls-backend",
			Namespace: namespace,
		})
}

func accepted(name gatewayv1.SectionName, routes int32) gatewayv1.ListenerStatus {
	status := listener(name, tlsRoutes(),
		condition(gatewayv1.ListenerConditionAccepted, metav1.ConditionTrue, gatewayv1.ListenerReasonAccepted),
		condition(gatewayv1.ListenerConditionResolvedRefs, metav1.ConditionTrue, gatewayv1.ListenerReasonResolvedRefs))
	status.AttachedRoutes = routes
	return status
}

func listener(name gatewayv1.SectionName, kinds []gatewayv1.RouteGroupKind, conditions ...metav1.Condition) gatewayv1.ListenerStatus {
	if kinds == nil {
		kinds = []gatewayv1.RouteGroupKind{}
	}
	return gatewayv1.ListenerStatus{Name: name, SupportedKinds: kinds, Conditions: conditions}
}

func tlsRoutes() []gatewayv1.RouteGroupKind {
	group := gatewayv1.Group(gatewayv1.GroupName)
	return []gatewayv1.RouteGroupKind{{Group: &group, Kind: "TLSRoute"}}
}

func condition[T, R ~string](kind T, status metav1.ConditionStatus, reason R) metav1.Condition {
	return metav1.Condition{Type: string(kind), Status: status, Reason: string(reason)}
}
