package conformance

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"snigate.dev/conformance/rig"
)

// patience is an option of kubectl: how long to wait for what takes seconds, on a machine that is not busy.
const patience = "--timeout=2m"

// snigate is the binary that is tested.
func snigate(t *testing.T) string {
	t.Helper()
	path := os.Getenv("SNIGATE")
	require.NotEmpty(t, path, "SNIGATE must be the path of the binary")
	return path
}

// router runs snigate until the end of the test, and returns when it serves.
func router(t *testing.T, arguments ...string) *rig.Process {
	t.Helper()
	command := exec.Command(snigate(t), arguments...)
	command.Env = append(os.Environ(), "RUST_LOG=info")
	process, err := rig.Run(command)
	require.NoError(t, err)
	t.Cleanup(func() {
		process.End()
		keep(t, "snigate", process)
	})
	return process
}

// keep writes down what a process has printed, if the test has failed.
func keep(t *testing.T, name string, process *rig.Process) {
	if !t.Failed() {
		return
	}
	path := filepath.Join(os.TempDir(), strings.ReplaceAll(t.Name(), "/", "_")+"."+name+".log")
	if err := os.WriteFile(path, []byte(process.Printed()), 0o600); err == nil {
		t.Logf("the log of %s: %s", name, path)
	}
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// kubectl is the real one, with a kubeconfig.
type kubectl struct{ file string }

func (k kubectl) command(arguments ...string) *exec.Cmd {
	return rig.Command("kubectl", append([]string{"--kubeconfig=" + k.file}, arguments...)...)
}

// run returns what it prints. It must succeed.
func (k kubectl) run(t *testing.T, arguments ...string) string {
	t.Helper()
	return k.feed(t, "", arguments...)
}

// feed is run with an input.
func (k kubectl) feed(t *testing.T, input string, arguments ...string) string {
	t.Helper()
	command := k.command(arguments...)
	var complaint bytes.Buffer
	command.Stdin, command.Stderr = strings.NewReader(input), &complaint
	printed, err := command.Output()
	require.NoErrorf(t, err, "kubectl %s: %s", strings.Join(arguments, " "), complaint.String())
	return string(printed)
}

// beside runs it until the end of the test.
func (k kubectl) beside(t *testing.T, arguments ...string) *rig.Process {
	t.Helper()
	process, err := rig.Run(k.command(arguments...))
	require.NoError(t, err)
	t.Cleanup(process.End)
	return process
}
