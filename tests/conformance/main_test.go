package conformance

import (
	"os"
	"testing"

	"snigate.dev/conformance/rig"
)

func TestMain(m *testing.M) {
	rig.Main()
	os.Exit(m.Run())
}
