package engine

import (
	"os"
	"strings"
	"testing"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

func TestChoose(t *testing.T) {
	e, f, why, err := Choose(hv.EngineProcess)
	if e != hv.EngineProcess || f != nil || why != "" || err != nil {
		t.Error(e, f, why, err)
	}
	if _, _, _, err := Choose("warp"); api.KindOf(err) != api.Invalid {
		t.Error(err)
	}
	e, f, why, err = Choose("")
	if err != nil {
		t.Fatal(err)
	}
	if (e == hv.EngineKVM) != (f != nil) || (e == hv.EngineProcess) != (why != "") {
		t.Error(e, f, why)
	}
	if f != nil {
		f.Close()
	}
	if _, err := os.Stat(Device); err != nil {
		if _, _, _, err := Choose(hv.EngineKVM); api.KindOf(err) != api.CannotRun || !strings.Contains(err.Error(), "--engine process") {
			t.Error(err)
		}
	}
}
