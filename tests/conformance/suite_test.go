package conformance

import (
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/gateway-api/conformance"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/yaml"
)

const reportFile = "report.yaml"

// skipped are the tests of the profile that are about TLSRoute in nothing but its name: each is made of listeners that
// a router which terminates nothing cannot accept. What they are about is tested by a twin with listeners for TLS.
var skipped = map[string]string{
	"GatewayInvalidRouteKind":                   "listeners for HTTP; twin: TLSListenerInvalidRouteKind",
	"GatewayInvalidTLSConfiguration":            "listeners for HTTPS, and Secrets; twin: TLSListenerInvalidConfiguration",
	"GatewayListenerUnsupportedProtocol":        "a listener for HTTP; twin: TLSListenerUnsupportedProtocol",
	"GatewayModifyListeners":                    "listeners for HTTP and HTTPS; twin: TLSListenersModified",
	"GatewayObservedGenerationBump":             "listeners for HTTP; twin: TLSGatewayObservedGenerationBump",
	"GatewaySecretInvalidReferenceGrant":        "listeners for HTTPS, and Secrets; twin for Services: TLSRouteReferenceGrant",
	"GatewaySecretMissingReferenceGrant":        "listeners for HTTPS, and Secrets; twin for Services: TLSRouteReferenceGrant",
	"GatewaySecretReferenceGrantAllInNamespace": "listeners for HTTPS, and Secrets; twin for Services: TLSRouteReferenceGrant",
	"GatewaySecretReferenceGrantSpecific":       "listeners for HTTPS, and Secrets; twin for Services: TLSRouteReferenceGrant",
}

func TestConformance(t *testing.T) {
	made := newImplementation(t, "conformance", "10.99.1.11")
	t.Setenv("KUBECONFIG", made.admin.file)
	official, err := manifests()
	require.NoError(t, err)
	version, err := exec.Command(snigate(t), "--version").Output()
	require.NoError(t, err)

	options := conformance.DefaultOptions(t)
	options.GatewayClassName = className
	options.ConformanceProfiles = []suite.ConformanceProfileName{suite.GatewayTLSConformanceProfileName}
	options.SkipTests = slices.Sorted(maps.Keys(skipped))
	options.ManifestFS = []fs.FS{official, twinManifests}
	options.Implementation = confv1.Implementation{
		Organization: "snigate",
		Project:      "snigate",
		URL:          "https://snigate.dev",
		Version:      strings.TrimPrefix(strings.TrimSpace(string(version)), "snigate "),
		Contact:      []string{"https://snigate.dev"},
	}
	conforming, err := suite.NewConformanceTestSuite(options)
	require.NoError(t, err)
	conforming.Setup(t, tests.ConformanceTests)

	t.Run("Suite", func(t *testing.T) { require.NoError(t, conforming.Run(t, tests.ConformanceTests)) })
	// Of its own: those of the suite that are parallel end when `Suite` does.
	t.Run("Report", func(t *testing.T) {
		report, err := conforming.Report()
		require.NoError(t, err)
		compare(t, report)
	})
	t.Run("Twins", func(t *testing.T) { require.NoError(t, conforming.Run(t, twins)) })
}

// compare demands that the file in the tree says what has been found, or writes it if SNIGATE_WRITE is set.
func compare(t *testing.T, report *confv1.ConformanceReport) {
	t.Helper()
	found, err := yaml.Marshal(report)
	require.NoError(t, err)
	if os.Getenv("SNIGATE_WRITE") != "" {
		require.NoError(t, os.WriteFile(reportFile, found, 0o644))
		return
	}
	content, err := os.ReadFile(reportFile)
	require.NoError(t, err)
	var written confv1.ConformanceReport
	require.NoError(t, yaml.Unmarshal(content, &written))
	// The date is another every time.
	require.Equal(t, written.ProfileReports, report.ProfileReports, "%s is not what was found:\n%s", reportFile, found)
	require.Equal(t, written.GatewayAPIVersion, report.GatewayAPIVersion)
	require.Equal(t, written.Implementation, report.Implementation)
}
