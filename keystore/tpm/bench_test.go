package tpm

import "testing"

// What a look at the key costs its neighbours, each minute.
func BenchmarkTry(b *testing.B) {
	d := open(b, emulator(b), Options{})
	for name, load := range map[string]func([]byte) (*Key, error){
		"loaded": func(text []byte) (*Key, error) { return d.Load(b.Context(), text) },
		"read":   d.Key,
	} {
		b.Run(name, func(b *testing.B) {
			k := must(load(create(b, d, P256)))(b)
			for b.Loop() {
				if err := k.Try(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			k.Release(b.Context())
		})
	}
	b.Run("signature", func(b *testing.B) {
		k := load(b, d, P256)
		for b.Loop() {
			if err := sign(k); err != nil {
				b.Fatal(err)
			}
		}
	})
}
