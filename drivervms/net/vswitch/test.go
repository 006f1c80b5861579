package vswitch

import "fmt"

// Test has the switch look at a frame that is good and at one that is not. No client is attached.
func (s *Switch) Test() error {
	var f frame
	good := make([]byte, ethHeader+46)
	copy(good, "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5") // a local experimental protocol (IEEE 802)
	if r := f.set(good); r != Delivered {
		return fmt.Errorf("a good frame is dropped: %v", r)
	}
	if r := f.set(good[:ethHeader-1]); r != DropShort {
		return fmt.Errorf("a short frame is not dropped as such: %v", r)
	}
	return nil
}
