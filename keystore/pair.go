package keystore

import (
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// InstallPair puts a key file into the next slot together with its certificate
// chain (PEM), and the request that was made with the key where there is one, and
// says which slot they are in. It is one change: until then what waited there is
// as it was, and then it is given up. The first certificate of a store becomes
// the current one at once, as by Install. The pair that is there already changes
// nothing.
func (s *Store) InstallPair(key, request, text []byte) (slot string, err error) {
	public, err := tpm.PublicKey(key)
	if err != nil {
		return "", err
	}
	chain, err := Chain(text)
	if err != nil {
		return "", err
	}
	if !Matches(public, chain[0]) {
		return "", fmt.Errorf("the certificate %q: %w", chain[0].Subject, ErrOtherKey)
	}
	err = s.change(func() error {
		all, err := s.Read()
		if err != nil {
			return err
		}
		slot, err = s.installPair(&all, chain, map[string][]byte{keyFile: key, requestFile: request, chainFile: text})
		return err
	})
	return slot, err
}

func (s *Store) installPair(all *Slots, chain []*x509.Certificate, files map[string][]byte) (string, error) {
	same := func(slot *Slot) bool {
		return slot != nil && slot.Public != nil && slices.EqualFunc(slot.Chain, chain, (*x509.Certificate).Equal)
	}
	if same(all.Current) {
		return Current, nil
	}
	if !same(all.Next) {
		if err := s.add(Next, files); err != nil {
			return "", err
		}
	}
	if all.Current == nil {
		return Current, s.promote()
	}
	return Next, nil
}
