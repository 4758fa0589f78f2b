package drivers_test

import (
	"strings"
	"testing"

	"github.com/bedside-gateway/gatewayd/drivers"
)

func named(name string, m drivers.Match) drivers.Driver {
	return &fake{info: drivers.Info{Name: name, Title: strings.ToUpper(name)}, identify: func([]byte) drivers.Match { return m }}
}

func TestTheRegistryFindsDriversByName(t *testing.T) {
	r, err := drivers.NewRegistry(named("medibus", 0), named("dri", 0), named("intellivue", 0))
	if err != nil {
		t.Fatal(err)
	}
	d, err := r.Lookup("medibus")
	if err != nil || d.Info().Name != "medibus" {
		t.Error(d, err)
	}
	for name, want := range map[string]string{
		"inteliview": "did you mean intellivue?",
		"Medibus":    "did you mean medibus?",
		"nonin":      "there are dri, intellivue, medibus",
		"":           "there are dri, intellivue, medibus",
	} {
		if _, err := r.Lookup(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
	if all := r.All(); len(all) != 3 || all[0].Info().Name != "dri" {
		t.Error(all)
	}
}

func TestTheRegistryRefusesNamesThatAreTakenOrWrong(t *testing.T) {
	for _, c := range []struct {
		name string
		want string
	}{{"dri", "two drivers are named dri"}, {"", "small letters"}, {"DRI", "small letters"}, {"s/5", "small letters"}} {
		if _, err := drivers.NewRegistry(named("dri", 0), named(c.name, 0)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.name, err)
		}
	}
}

func TestTheSurestDriverIsIdentified(t *testing.T) {
	r, err := drivers.NewRegistry(named("a", drivers.Plausible), named("b", drivers.Certain), named("c", drivers.NeedMore))
	if err != nil {
		t.Fatal(err)
	}
	if d, m := r.Identify(nil); m != drivers.Certain || d.Info().Name != "b" {
		t.Error(d, m)
	}
	r, err = drivers.NewRegistry(named("c", drivers.NeedMore))
	if err != nil {
		t.Fatal(err)
	}
	if d, m := r.Identify(nil); m != drivers.NoMatch || d != nil {
		t.Error(d, m)
	}
}
