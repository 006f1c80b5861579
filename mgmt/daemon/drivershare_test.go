package daemon

import (
	"encoding/json"
	"testing"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/store"
	"github.com/grailos/grail/mgmt/tenant"
)

// TestShareOf: of what was said, the most particular holds.
func TestShareOf(t *testing.T) {
	d := &Daemon{vms: map[string]*vm{}, domains: &domains{}}
	var err error
	if d.domains.tree, err = tenant.New(tenant.Share{}, tenant.Share{}); err != nil {
		t.Fatal(err)
	}
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

// TestTreeShare: a client gets what the tree says of its VM, in the groups that its tenants are.
func TestTreeShare(t *testing.T) {
	device := func(weight, ops, packets int64) tenant.Share {
		r := func(guarantee int64) tenant.Rate {
			return tenant.Rate{Guarantee: guarantee, Cap: 2 * guarantee, Weight: weight}
		}
		return tenant.Share{Devices: map[string]tenant.Device{"d": {Ops: r(ops), Packets: r(packets), Bytes: tenant.Rate{Weight: weight}}}}
	}
	tree, err := tenant.New(device(1, 1000, 1000), tenant.Share{})
	for _, add := range []func() error{
		func() error { return tree.Add("", tenant.Of("acme"), device(300, 100, 90)) },
		func() error { return tree.Add("acme", tenant.Of("acme/web"), tenant.Share{}) },
		func() error { return tree.Add("acme/web", tenant.Key{Kind: tenant.VM, Name: "a"}, device(7, 0, 0)) },
		func() error { return tree.Add("", tenant.Key{Kind: tenant.VM, Name: "b"}, device(8, 30, 20)) },
	} {
		if err == nil {
			err = add()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{vms: map[string]*vm{}, domains: &domains{tree: tree}}
	for _, k := range []struct{ vm, driver, kind, want string }{
		{"a", "d", typeBlk, `{"weight":7,"groups":[{"name":"/acme","weight":300,"opsCap":200,"opsGuarantee":100},{"name":"/acme/web"}]}`},
		{"a", "d", typeNet, `{"weight":7,"groups":[{"name":"/acme","weight":300,"opsCap":180,"opsGuarantee":90},{"name":"/acme/web"}]}`},
		{"a", "e", typeBlk, `{"groups":[{"name":"/acme"},{"name":"/acme/web"}]}`},
		{"b", "d", typeNet, `{"weight":8,"opsCap":40,"opsGuarantee":20}`},
		{"c", "d", typeBlk, `{}`},
	} {
		dr := d.newDriver(&store.Driver{Config: api.DriverConfig{Name: k.driver, Type: k.kind}})
		c := &client{att: hv.Attachment{Client: k.vm, Disk: "x"}}
		got := dr.shareOf(c)
		if text := shareText(got); text != k.want || got.Check() != nil {
			t.Errorf("%+v got %s, %v", k, text, got.Check())
		}
		// What was said of it for the driver goes first, in the same groups.
		dr.rec.Shares = map[string]share.Config{k.vm: {Limits: share.Limits{Weight: 5}}}
		if own := dr.shareOf(c); own.Limits != (share.Limits{Weight: 5}) || len(own.Groups) != len(got.Groups) {
			t.Errorf("%+v with a weight for the driver got %s", k, shareText(own))
		}
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
