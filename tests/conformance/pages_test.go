package conformance

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"snigate.dev/conformance/rig"
)

// What the page says of the cluster behind its route.
const (
	repository    = "../.."
	gatewayPage   = "docs/kubernetes.md"
	hostedName    = "kubernetes01.example.com"
	hostedAddress = "10.99.1.15"
	hostedServer  = "kubernetes01-apiserver-0"
	hostedBackend = `
apiVersion: v1
kind: Service
metadata: {name: kubernetes01-apiserver}
spec: {ports: [{port: 6443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kubernetes01-apiserver
  labels: {kubernetes.io/service-name: kubernetes01-apiserver}
addressType: IPv4
ports: [{port: 6443}]
endpoints: [{addresses: [` + hostedAddress + `]}]
`
)

// pages is a cluster in which a reader has begun to type what docs/kubernetes.md says.
type pages struct {
	*implementation
	hosted *rig.Cluster
	reader reader
	// That of the replica whose address is published.
	edge string
}

// TestPages types the commands of docs/kubernetes.md and deploy/kubernetes.
func TestPages(t *testing.T) {
	made := newPages(t)
	t.Run("objects", made.objects)
	t.Run("doctor", made.doctor)
	t.Run("examples", made.examples)
	t.Run("outside", made.outside)
	t.Run("from a file", made.fromFile)
}

func newPages(t *testing.T) *pages {
	t.Helper()
	made := &pages{implementation: newCluster(t, "pages", "10.99.1.14")}
	var err error
	made.hosted, err = rig.StartCluster("kubernetes01", []string{hostedName}, hostedAddress)
	require.NoError(t, err)
	t.Cleanup(made.hosted.Stop)
	made.admin.feed(t, hostedBackend, "apply", "-f", "-")
	made.reader = newReader(t, made.admin.file)

	made.reader.types(t, gatewayPage, "apply")
	made.edge = slices.Sorted(maps.Values(made.replicas(t)))[0]
	made.awaitClass(t)
	// There is no load balancer, so that clients connect to a replica.
	made.publish(t, made.edge)
	require.NoError(t, rig.AddHost(made.edge, hostedName))
	made.admin.feed(t, block(t, gatewayPage, "objects"), "apply", "-f", "-")
	made.awaitGateway(t, "edge", made.edge)
	made.awaitRoutes(t)
	require.NoError(t, follow(t.Context(), made.edge+":6443", hostedName, hostedServer))
	return made
}

func (p *pages) objects(t *testing.T) {
	file, err := p.hosted.Kubeconfig("through", p.hosted.Admin(),
		&api.Cluster{Server: "https://" + hostedName + ":6443", CertificateAuthority: p.hosted.CA.File()})
	require.NoError(t, err)
	kubectl{file}.run(t, "create", "namespace", "made-through-the-router")
	file, err = p.hosted.Kubeconfig("direct", p.hosted.Admin(), p.hosted.Direct())
	require.NoError(t, err)
	kubectl{file}.run(t, "get", "namespace", "made-through-the-router")

	shown := p.reader.typesCommand(t, gatewayPage, "kubectl get gateways,tlsroutes -A")
	require.Regexp(t, `default +gateway\S+/edge +snigate +`+regexp.QuoteMeta(p.edge)+` +True `, shown)
	require.Regexp(t, `default +tlsroute\S+/kubernetes01 `, shown)
}

func (p *pages) doctor(t *testing.T) {
	role := p.listOnly(t)
	file := p.tokenOf(t, "doctor")
	reader := newReader(t, file)
	reader.has(t, "kubernetes01-ca.pem", p.hosted.CA.File())

	// Without addresses and times, which are others each time.
	same := func(text string) []string {
		text = strings.NewReplacer(p.cluster.Direct().Server, "https://10.0.0.1:6443", hostedAddress, "10.1.2.3", p.edge, "192.0.2.1").Replace(text)
		text = regexp.MustCompile(`\((under )?[0-9.]+ m?s\)`).ReplaceAllString(text, "(time)")
		text = regexp.MustCompile(`valid until \S+`).ReplaceAllString(text, "valid until then")
		text = regexp.MustCompile(` +`).ReplaceAllString(text, " ")
		return strings.Split(text, "\n")
	}
	printed := reader.types(t, gatewayPage, "doctor")
	require.Equal(t, same(block(t, gatewayPage, "doctor-output")), same(printed), printed)

	p.admin.run(t, "delete", "endpointslice", "kubernetes01-apiserver")
	printed, status := reader.run(t, block(t, gatewayPage, "doctor"))
	require.Equal(t, 1, status, printed)
	require.Regexp(t, `(?m)^  FAILED +backend +default/kubernetes01-apiserver:6443 +the Service has no ready endpoint$`, printed)
	p.admin.feed(t, hostedBackend, "apply", "-f", "-")
	require.NoError(t, follow(t.Context(), p.edge+":6443", hostedName, hostedServer))

	for i, rule := range role.Rules {
		group, resource := rule.APIGroups[0], rule.Resources[0]
		lacking := role.DeepCopy()
		lacking.Rules = slices.Delete(lacking.Rules, i, i+1)
		require.NoError(t, p.client.Update(t.Context(), lacking))
		p.awaitAccess(t, file, resource, group, false)
		printed, status := reader.run(t, block(t, gatewayPage, "doctor"))
		if resource == "ingresses" {
			require.Equal(t, 0, status, "without --ingress-class, nothing needs them: %s", printed)
		} else {
			require.Equal(t, 1, status, printed)
			if group == "" {
				group = "core"
			}
			sentence := "grant the verb `list` on `" + resource + "` of the API group " + group + " in the whole cluster\n"
			require.True(t, strings.HasSuffix(printed, sentence), "%s: %s", resource, printed)
		}
		role.ResourceVersion = lacking.ResourceVersion
		require.NoError(t, p.client.Update(t.Context(), role))
		p.awaitAccess(t, file, resource, rule.APIGroups[0], true)
	}
}

// listOnly binds the account `doctor` to what the shipped ClusterRole lets the controller list, and to nothing else. Each
// rule is about one resource.
func (p *pages) listOnly(t *testing.T) *rbacv1.ClusterRole {
	t.Helper()
	var shipped rbacv1.ClusterRole
	require.NoError(t, p.client.Get(t.Context(), client.ObjectKey{Name: account}, &shipped))
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "doctor"}}
	for _, rule := range shipped.Rules {
		if !slices.Contains(rule.Verbs, "list") {
			continue
		}
		for _, resource := range rule.Resources {
			role.Rules = append(role.Rules, rbacv1.PolicyRule{
				Verbs: []string{"list"}, APIGroups: rule.APIGroups, Resources: []string{resource},
			})
		}
	}
	require.NoError(t, p.client.Create(t.Context(), role))
	p.admin.run(t, "create", "serviceaccount", "doctor")
	p.admin.run(t, "create", "clusterrolebinding", "doctor", "--clusterrole=doctor", "--serviceaccount=default:doctor")
	return role
}

func (p *pages) tokenOf(t *testing.T, account string) string {
	t.Helper()
	token := strings.TrimSpace(p.admin.run(t, "create", "token", account))
	file, err := p.cluster.Kubeconfig(account, &api.AuthInfo{Token: token}, p.cluster.Direct())
	require.NoError(t, err)
	return file
}

// awaitAccess returns when the API server knows of changed rights.
func (p *pages) awaitAccess(t *testing.T, file, resource, group string, expected bool) {
	t.Helper()
	if group != "" {
		resource += "." + group
	}
	may := func() bool { return kubectl{file}.command("auth", "can-i", "list", resource, "-A").Run() == nil }
	require.Eventually(t, func() bool { return may() == expected }, time.Minute, 50*time.Millisecond, resource)
}

func (p *pages) examples(t *testing.T) {
	files, err := filepath.Glob(repository + "/deploy/kubernetes/gateway/examples/*.yaml")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), 4)
	made := map[string]bool{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, found := range regexp.MustCompile(`(?m)^  namespace: (\S+)$`).FindAllStringSubmatch(string(content), -1) {
			if name := found[1]; !made[name] {
				made[name] = true
				p.admin.run(t, "create", "namespace", name)
			}
		}
		if strings.Contains(string(content), "vclusters.example.com/routes: allowed") {
			p.admin.run(t, "label", "namespace", "team-a", "vclusters.example.com/routes=allowed")
		}
		p.admin.run(t, "apply", "-f", file)
	}
	p.admin.run(t, "wait", "gateways", "--all", "-A", "--for=condition=Programmed", patience)
	p.awaitRoutes(t)
	// Nobody here is a DaemonSet controller.
	p.admin.run(t, "apply", "--dry-run=server", "-k", shipped+"/host-network")
}

// outside runs the controller on another machine, after the replicas in the cluster are gone: the network of a pod.
func (p *pages) outside(t *testing.T) {
	p.in(t, "scale", "deployment/"+account, "--replicas=0")
	p.in(t, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name="+account, patience)
	p.backend(t, "a")
	var pods corev1.PodList
	require.NoError(t, p.client.List(t.Context(), &pods, client.InNamespace("default"), client.MatchingLabels{"app": "a"}))
	machine := pods.Items[0]
	typed := p.reader.shell(block(t, gatewayPage, "outside"))
	running := p.admin.beside(t, slices.Concat([]string{"exec", machine.Name, "--", "env", "-C", typed.Dir}, p.reader.variables(), typed.Args)...)
	t.Cleanup(func() { keep(t, "outside", running) })
	p.admin.run(t, "wait", "gateway/edge", "--for=jsonpath={.status.addresses[0].value}=192.0.2.1", patience)
	require.NoError(t, follow(t.Context(), machine.Status.PodIP+":6443", hostedName, hostedServer))
}

// fromFile is the kustomization that does without Gateway API.
func (p *pages) fromFile(t *testing.T) {
	p.reader.types(t, "deploy/kubernetes/README.md", "apply")
}

// awaitRoutes returns when every TLSRoute is attached to its parent.
func (p *pages) awaitRoutes(t *testing.T) {
	t.Helper()
	p.admin.run(t, "wait", "tlsroutes", "--all", "-A", patience,
		"--for=jsonpath={.status.parents[0].conditions[?(@.type=='Accepted')].status}=True")
}

// reader types commands in a directory with the repository's files, kubectl, snigate, and a kubeconfig where pages look
// for one.
type reader struct{ directory string }

func newReader(t *testing.T, kubeconfig string) reader {
	t.Helper()
	made := reader{t.TempDir()}
	self, err := os.Executable()
	require.NoError(t, err)
	deploy, err := filepath.Abs(repository + "/deploy")
	require.NoError(t, err)
	made.has(t, "kubectl", self)
	made.has(t, "snigate", snigate(t))
	made.has(t, "deploy", deploy)
	made.has(t, ".kube/config", kubeconfig)
	return made
}

// has puts a file there.
func (r reader) has(t *testing.T, name, target string) {
	t.Helper()
	path := filepath.Join(r.directory, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(t, os.Symlink(target, path))
}

func (r reader) variables() []string {
	return []string{"HOME=" + r.directory, "PATH=" + r.directory + ":" + os.Getenv("PATH")}
}

func (r reader) shell(commands string) *exec.Cmd {
	command := exec.Command("sh", "-ec", commands)
	command.Dir, command.Env = r.directory, append(os.Environ(), r.variables()...)
	return command
}

// run returns what commands print, and the exit status.
func (r reader) run(t *testing.T, commands string) (string, int) {
	t.Helper()
	printed, err := r.shell(commands).CombinedOutput()
	var status *exec.ExitError
	if errors.As(err, &status) {
		return string(printed), status.ExitCode()
	}
	require.NoError(t, err)
	return string(printed), 0
}

// types returns what a block of commands prints. It must succeed.
func (r reader) types(t *testing.T, page, name string) string {
	t.Helper()
	printed, status := r.run(t, block(t, page, name))
	require.Equal(t, 0, status, "%s: %s: %s", page, name, printed)
	return printed
}

// typesCommand is types, for a command within a sentence.
func (r reader) typesCommand(t *testing.T, page, command string) string {
	t.Helper()
	require.Contains(t, text(t, page), "`"+command+"`")
	printed, status := r.run(t, command)
	require.Equal(t, 0, status, printed)
	return printed
}

func text(t *testing.T, page string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(repository, page))
	require.NoError(t, err)
	return string(content)
}

// block is a block of a page, by the name in the comment above it.
func block(t *testing.T, page, name string) string {
	t.Helper()
	_, after, found := strings.Cut(text(t, page), "<!-- block: "+name+" -->\n```")
	require.True(t, found, "%s has no block %s", page, name)
	_, after, _ = strings.Cut(after, "\n")
	inside, _, _ := strings.Cut(after, "```")
	return inside
}
