package daemon

import (
	"testing"

	"github.com/grailos/grail/mgmt/place"
	"github.com/grailos/grail/mgmt/store"
)

func openStore(t *testing.T, dirs place.Dirs) *store.Store {
	t.Helper()
	s, err := store.Open(dirs.Store(), func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	return s
}
