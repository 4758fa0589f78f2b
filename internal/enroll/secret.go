//go:build goexperiment.runtimesecret

package enroll

import "runtime/secret"

// wipes is whether the copies that packages make of a key are wiped.
const wipes = true

// secretly runs f, and has the runtime wipe the registers, the stack and what f
// allocated, as soon as nothing refers to it.
func secretly(f func()) { secret.Do(f) }
