package vhostuser

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzDecode parses arbitrary bytes as every payload there is, and checks that what was accepted survives a
// round trip.
func FuzzDecode(f *testing.F) {
	add := func(m message) { f.Add(m.encode(nil)) }
	add(message{req: GetFeatures, flags: flagVersion})
	add(message{req: SetFeatures, flags: flagVersion | flagNeedReply, payload: putU64(1 << 30)})
	add(message{req: SetMemTable, flags: flagVersion, payload: encodeRegions([]MemRegion{{Size: 4096}, {GPA: 1 << 20, User: 1 << 20, Size: 1}})})
	add(message{req: SetVringAddr, flags: flagVersion, payload: vringAddr{index: 1, desc: 2, used: 3, avail: 4, log: 5}.encode()})
	add(message{req: GetConfig, flags: flagVersion, payload: configSpace{offset: 1, data: make([]byte, 60)}.encode()})
	add(message{req: GetInflightFD, flags: flagVersion, payload: (&InflightArea{Queues: 1, QueueSize: 128}).encode()})
	add(message{req: AddMemReg, flags: flagVersion, payload: append(make([]byte, 8), (&MemRegion{Size: 1}).encode(nil)...)})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerBytes {
			return
		}
		m, size, err := decodeHeader(b)
		if err != nil {
			if !errors.Is(err, ErrMessage) {
				t.Fatal(err)
			}
			return
		}
		if size > maxPayload {
			t.Fatalf("payload of %d bytes", size)
		}
		if len(b) < headerBytes+size {
			return
		}
		m.payload = b[headerBytes : headerBytes+size]
		if !bytes.Equal(m.encode(nil), b[:headerBytes+size]) {
			t.Fatal("header changes in a round trip")
		}
		same := func(what string, enc []byte, err error) {
			if err != nil && !errors.Is(err, ErrMessage) {
				t.Fatalf("%s: %v", what, err)
			}
			if err == nil && !bytes.Equal(enc, m.payload) {
				t.Fatalf("%s: % x became % x", what, m.payload, enc)
			}
		}
		u, err := m.u64()
		same("u64", putU64(u), err)
		s, err := m.state()
		same("state", s.encode(), err)
		a, err := m.addr()
		same("addr", a.encode(), err)
		v, err := m.vringFD()
		same("vring fd", v.encode(), err)
		c, err := m.config()
		same("config", c.encode(), err)
		if rs, err := m.regions(); err == nil {
			if enc := encodeRegions(rs); !bytes.HasPrefix(m.payload[memHeadBytes:], enc[memHeadBytes:]) {
				t.Fatal("regions change in a round trip")
			}
		}
		if r, err := m.region(); err == nil && !bytes.Equal(r.encode(nil), m.payload[8:]) {
			t.Fatal("region changes in a round trip")
		}
		if i, err := m.inflight(); err == nil && !bytes.Equal(i.encode()[:inflightMin], m.payload[:inflightMin]) {
			t.Fatal("in-flight description changes in a round trip")
		}
	})
}

// FuzzSession feeds a session a program of messages. Each is a request number, a byte that says which
// descriptors come along, a length and a payload. The handler checks the order of calls, the end the descriptors.
func FuzzSession(f *testing.F) {
	var seed []byte
	step := func(req Request, fds byte, payload []byte) {
		seed = append(seed, byte(req), fds, byte(len(payload)))
		seed = append(seed, payload...)
	}
	step(SetFeatures, 0, putU64(FeatureProtocol))
	step(SetProtocolFeatures, 0, putU64(ProtocolSupported))
	step(SetMemTable, 1, encodeRegions([]MemRegion{{Size: 4096, GPA: 1 << 20}}))
	step(SetVringNum, 0, vringState{0, 4}.encode())
	step(SetVringAddr, 0, vringAddr{avail: 256, used: 512}.encode())
	step(SetVringKick, 2, vringFD{}.encode())
	step(SetVringCall, 2, vringFD{}.encode())
	step(SetVringEnable, 0, vringState{0, 1}.encode())
	f.Add(seed)
	step(SetVringCall, 2, vringFD{}.encode())
	step(AddMemReg, 1, append(make([]byte, 8), (&MemRegion{Size: 4096, GPA: 8 << 20, User: 8 << 20}).encode(nil)...))
	step(GetInflightFD, 0, (&InflightArea{Queues: 1, QueueSize: 4}).encode())
	step(SetInflightFD, 1, (&InflightArea{Queues: 1, QueueSize: 4, Size: 128}).encode())
	step(GetVringBase, 0, vringState{}.encode())
	f.Add(seed)
	f.Fuzz(func(t *testing.T, program []byte) {
		h := newRecorder(t)
		fuzzSession(t, h, newSession(h), program)
	})
}

// FuzzPairs is FuzzSession for a device of four queues, of which a front end without ProtocolMultiQueue has two.
func FuzzPairs(f *testing.F) {
	var seed []byte
	step := func(req Request, fds byte, payload []byte) {
		seed = append(seed, byte(req), fds, byte(len(payload)))
		seed = append(seed, payload...)
	}
	const single = ProtocolSupported &^ ProtocolMultiQueue
	step(GetFeatures, 0, nil)
	step(SetProtocolFeatures, 0, putU64(ProtocolSupported))
	step(GetQueueNum, 0, nil)
	step(GetFeatures, 0, nil)
	step(SetFeatures, 0, putU64(FeatureProtocol|pairsFeature))
	step(SetMemTable, 1, encodeRegions([]MemRegion{{Size: 8192, GPA: 1 << 20}}))
	for i := range uint32(4) {
		base := uint64(i) * 1024
		step(SetVringNum, 0, vringState{i, 4}.encode())
		step(SetVringBase, 0, vringState{i, 0}.encode())
		step(SetVringAddr, 0, vringAddr{index: i, desc: base, avail: base + 256, used: base + 512}.encode())
		step(SetVringKick, 2, vringFD{index: i}.encode())
		step(SetVringCall, 2, vringFD{index: i}.encode())
		step(SetVringEnable, 0, vringState{i, 1}.encode())
	}
	step(SetVringEnable, 0, vringState{2, 0}.encode())
	step(SetVringEnable, 0, vringState{3, 0}.encode())
	step(SetVringEnable, 0, vringState{3, 1}.encode())
	f.Add(seed)
	whole := seed
	step(SetProtocolFeatures, 0, putU64(single)) // the second pair goes
	step(GetQueueNum, 0, nil)
	f.Add(seed)
	step(SetProtocolFeatures, 0, putU64(ProtocolSupported)) // and comes back
	step(GetVringBase, 0, vringState{index: 2}.encode())
	step(GetVringBase, 0, vringState{index: 3}.encode())
	f.Add(seed)
	seed = append([]byte(nil), whole...)
	step(SetProtocolFeatures, 0, putU64(single))
	step(SetVringEnable, 0, vringState{2, 1}.encode())
	f.Add(seed)
	f.Fuzz(func(t *testing.T, program []byte) {
		h := &pairs{newRecorder(t)}
		s := newSession(h)
		fuzzSession(t, h.recorder, s, program)
	})
}

// fuzzSession runs a program of messages.
func fuzzSession(t *testing.T, h *recorder, s *session, program []byte) {
	var given []int
	var err error
	for len(program) >= 3 && err == nil {
		m := message{req: Request(program[0]), flags: flagVersion | flagNeedReply}
		for n := program[1]; n > 0 && len(m.fds) < MaxRegions; n /= 3 {
			switch n % 3 {
			case 1:
				m.fds = append(m.fds, memfd(t, 8192))
			case 2:
				m.fds = append(m.fds, eventfd(t))
			}
		}
		given = append(given, m.fds...)
		n := min(int(program[2]), len(program)-3)
		m.payload, program = program[3:3+n], program[3+n:]
		var r *message
		if r, err = s.handle(&m); err != nil && !errors.Is(err, ErrMessage) {
			t.Fatalf("%v: %v", m.req, err)
		}
		if r != nil && (r.req != m.req || r.flags&flagReply == 0 || len(r.payload) > maxPayload) {
			t.Fatalf("answer to %v: %+v", m.req, r)
		}
		if len(m.fds) != 0 {
			t.Fatalf("%v left descriptors to the caller", m.req)
		}
	}
	s.close(err)
	for _, fd := range given {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			// The number may have been used again, but then by a descriptor that was closed as well.
			t.Fatalf("descriptor %d is still open", fd)
		}
	}
	if !h.over || len(h.running) != 0 {
		t.Fatalf("after the end: over %v, running %v", h.over, h.running)
	}
}
