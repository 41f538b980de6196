package conformance

import (
	"bytes"
	"embed"
	"io/fs"
	"slices"
	"strings"
	"testing/fstest"

	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/utils/kubernetes"
	"sigs.k8s.io/yaml"
)

//go:embed twins
var twinManifests embed.FS

// manifests are those of the suite. Only Gateways that have no listener for TLS are marked, so that the suite does not
// wait until they are ready: it waits for all Gateways of its namespaces, whatever the test.
func manifests() (fs.FS, error) {
	marked := fstest.MapFS{}
	err := fs.WalkDir(conformance.Manifests, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := conformance.Manifests.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".yaml") {
			content, err = mark(content)
		}
		marked[path] = &fstest.MapFile{Data: content, Mode: 0o444}
		return err
	})
	return marked, err
}

func mark(content []byte) ([]byte, error) {
	separator := []byte("\n---\n")
	documents := bytes.Split(content, separator)
	for i, document := range documents {
		if !bytes.Contains(document, []byte("kind: Gateway\n")) {
			continue
		}
		var gateway map[string]any
		if err := yaml.Unmarshal(document, &gateway); err != nil {
			return nil, err
		}
		if hasTLS(gateway) {
			continue
		}
		metadata := gateway["metadata"].(map[string]any)
		annotations, _ := metadata["annotations"].(map[string]any)
		if annotations == nil {
			annotations = map[string]any{}
			metadata["annotations"] = annotations
		}
		annotations[kubernetes.GatewayExcludedFromReadinessChecks] = "true"
		changed, err := yaml.Marshal(gateway)
		if err != nil {
			return nil, err
		}
		documents[i] = changed
	}
	return bytes.Join(documents, separator), nil
}

func hasTLS(gateway map[string]any) bool {
	spec, _ := gateway["spec"].(map[string]any)
	listeners, _ := spec["listeners"].([]any)
	return slices.ContainsFunc(listeners, func(listener any) bool {
		return listener.(map[string]any)["protocol"] == "TLS"
	})
}
