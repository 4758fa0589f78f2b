package keystore

import (
	"errors"
	"path/filepath"
	"testing"
)

// A certificate that waits is there until the one that takes its place is.
func TestAPairTakesThePlaceOfAnotherInOneChange(t *testing.T) {
	c, first, second, third := newCA(t), newKey(t), newKey(t), newKey(t)
	one, two, three := c.chain(first.Public()), c.chain(second.Public()), c.chain(third.Public())
	for n := 0; ; n++ {
		s := Open(filepath.Join(t.TempDir(), "device"))
		if slot, err := s.InstallPair(keyOf(t, first), []byte("r"), one); err != nil || slot != Current {
			t.Fatalf("the first one is in the slot %q: %v", slot, err)
		}
		if slot, err := s.InstallPair(keyOf(t, first), []byte("r"), one); err != nil || slot != Current || read(t, s).Next != nil {
			t.Fatalf("the first one again is in the slot %q: %v", slot, err)
		}
		if slot, err := s.InstallPair(keyOf(t, second), nil, two); err != nil || slot != Next {
			t.Fatalf("the second one is in the slot %q: %v", slot, err)
		}
		slot, err := s.cut(n).InstallPair(keyOf(t, third), []byte("r"), three)
		all := read(t, s)
		if !Matches(first.Public(), all.Current.Chain[0]) || all.Next == nil || all.Next.Chain == nil {
			t.Fatalf("cut at step %d: the slots are %+v", n, all)
		}
		if err == nil {
			if slot != Next || !Matches(third.Public(), all.Next.Chain[0]) || string(all.Next.Request) != "r" || n == 0 {
				t.Errorf("after %d steps the third one is in the slot %q", n, slot)
			}
			stamp := s.Stamp()
			if slot, err := s.InstallPair(keyOf(t, third), []byte("r"), three); err != nil || slot != Next || s.Stamp() != stamp {
				t.Errorf("the same again: %q %v", slot, err)
			}
			break
		}
		if !errors.Is(err, errPower) {
			t.Fatal(err)
		}
		if slot, err := s.InstallPair(keyOf(t, third), []byte("r"), three); err != nil || slot != Next {
			t.Errorf("cut at step %d, it is not completed by another try: %q %v", n, slot, err)
		}
	}
}

func TestAPairThatIsNoneIsRefused(t *testing.T) {
	s, c, key := Open(filepath.Join(t.TempDir(), "device")), newCA(t), newKey(t)
	chain := c.chain(key.Public())
	if _, err := s.InstallPair(keyOf(t, newKey(t)), nil, chain); !errors.Is(err, ErrOtherKey) {
		t.Errorf("a certificate of another key: %v", err)
	}
	if _, err := s.InstallPair([]byte("no key"), nil, chain); err == nil {
		t.Error("a key file that is none is taken")
	}
	if _, err := s.InstallPair(keyOf(t, key), nil, chain[:40]); err == nil {
		t.Error("half a certificate is taken")
	}
	if all := read(t, s); all != (Slots{}) {
		t.Errorf("what was refused left %+v", all)
	}
}
