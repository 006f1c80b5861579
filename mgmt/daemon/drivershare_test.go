package daemon

import (
	"encoding/json"
	"testing"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/store"
)

// TestShareOf: of what was said, the most particular holds.
func TestShareOf(t *testing.T) {
	d := &Daemon{vms: map[string]*vm{}}
	d.vms["web"] = &vm{d: d, rec: store.VM{Config: api.VMConfig{Name: "web", Disks: []api.DiskRef{{Driver: "blk0", Disk: "b"}}}}}
	weight := func(n uint32) share.Config { return share.Config{Limits: share.Limits{Weight: n}} }
	dr := d.newDriver(&store.Driver{Config: api.DriverConfig{Name: "blk0"}, Shares: map[string]share.Config{
		"b": weight(1), "web": weight(2), "web/a": weight(3), "db": weight(4),
	}})
	for _, k := range []struct {
		client, disk string
		portal       bool
		want         uint32
	}{{"web", "a", false, 3}, {"web", "b", false, 2}, {"other", "b", false, 1}, {"db", "b", false, 4}, {"other", "c", false, 0},
		{"vhost-user", "b", true, 2}, {"vhost-user", "c", true, 0}} {
		att := hv.Attachment{ID: 5, Client: k.client, Disk: k.disk}
		if k.portal {
			att.ID += hv.PortalIDs
		}
		if got := dr.shareOf(&client{att: att}); got.Weight != k.want {
			t.Errorf("%+v got weight %d", k, got.Weight)
		}
	}
	d.vms["db"] = &vm{d: d, rec: store.VM{Config: api.VMConfig{Name: "db", Disks: []api.DiskRef{{Driver: "blk0", Disk: "b"}}}}}
	if got := dr.shareOf(&client{att: hv.Attachment{ID: 5 + hv.PortalIDs, Client: "x", Disk: "b"}}); got.Weight != 1 {
		t.Errorf("one of two VMs got weight %d", got.Weight)
	}
}

// TestWithShare: a share stands beside what else an attachment's configuration says.
func TestWithShare(t *testing.T) {
	for _, config := range []string{"", `{"name":"x"}`, `{"name":"x","share":{"weight":7}}`} {
		text, err := withShare(config, `{"weight":5}`)
		var got struct {
			Name  string
			Share share.Config
		}
		if err == nil {
			err = json.Unmarshal([]byte(text), &got)
		}
		if err != nil || got.Share.Weight != 5 || (got.Name == "x") != (config != "") {
			t.Errorf("%q became %s, %v", config, text, err)
		}
	}
	if _, err := withShare("[", "{}"); err == nil {
		t.Error("a configuration that is no object was taken")
	}
}
