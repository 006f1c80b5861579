package api

import "testing"

func TestParsePublish(t *testing.T) {
	for in, want := range map[string]string{
		"8080:80": "127.0.0.1:8080:80", "0.0.0.0:53:5353/udp": "0.0.0.0:53:5353/udp", "10.0.0.1:1:65535/tcp": "10.0.0.1:1:65535",
		"[::1]:80:80": "[::1]:80:80", "::1:80:80": "[::1]:80:80", "[::ffff:10.0.0.1]:80:80": "10.0.0.1:80:80",
		"": "", "80": "", ":80": "", "80:": "", "0:80": "", "80:0": "", "65536:80": "", "-1:80": "", "a:80": "", "80:80/": "", "80:80/sctp": "", "1.2.3:80:80": "",
		"host:80:80": "", "[fe80::1%eth0]:80:80": "", "80:80/udp/tcp": "", "[::1:80:80": "",
	} {
		p, err := ParsePublish(in)
		if (err == nil) != (want != "") || err == nil && p.String() != want {
			t.Errorf("%q: %v, %v; want %q", in, p, err, want)
		}
		if err != nil {
			continue
		}
		if again, err := ParsePublish(p.String()); err != nil || again != p {
			t.Errorf("%q: %v became %v, %v", in, p, again, err)
		}
	}
}

func FuzzParsePublish(f *testing.F) {
	for _, s := range []string{"8080:80", "[::1]:80:80/udp", "0.0.0.0:1:2", "::::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePublish(s)
		if err != nil {
			return
		}
		if again, err := ParsePublish(p.String()); err != nil || again != p {
			t.Errorf("%q: %v became %v, %v", s, p, again, err)
		}
		if p.Port == 0 || p.Address.Port() == 0 || !p.Address.IsValid() {
			t.Errorf("%q: %+v", s, p)
		}
	})
}

func TestCheckPublish(t *testing.T) {
	good, _ := ParsePublish("80:80")
	udp := good
	udp.UDP = true
	nets := []NetRef{{Driver: "net0", Port: "web"}}
	for _, c := range []struct {
		cfg VMConfig
		ok  bool
	}{
		{VMConfig{}, true},
		{VMConfig{Publish: []Publish{good}}, false},
		{VMConfig{Nets: nets, Publish: []Publish{good, udp}}, true},
		{VMConfig{Nets: nets, Publish: []Publish{good, good}}, false},
		{VMConfig{Nets: nets, Publish: []Publish{{}}}, false},
		{VMConfig{Nets: nets, Publish: make([]Publish, MaxPublish+1)}, false},
	} {
		if err := CheckPublish(&c.cfg); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.cfg, err)
		}
	}
}
