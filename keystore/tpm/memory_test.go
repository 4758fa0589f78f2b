package tpm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// remembers makes this test binary a process that uses the TPM at an address
// and waits, so that somebody may look into its memory.
const remembers = "GATEWAY_TPM_REMEMBERS"

// remember imports and uses the key, and unseals the secret, whose files it
// gets in base64, one a line. It says that it is done, and waits for the end of
// its input.
func remember() int {
	in := bufio.NewReader(os.Stdin)
	line := func() []byte {
		text, _ := in.ReadString('\n')
		b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
		if err != nil {
			panic(err)
		}
		return b
	}
	ctx := context.Background()
	d := Open(os.Getenv(remembers), Options{})
	loadable, err := d.Import(ctx, line())
	if err == nil {
		var k *Key
		if k, err = d.Load(ctx, loadable); err == nil {
			err = sign(k)
		}
	}
	if err == nil {
		var secret []byte
		if secret, err = d.Unseal(ctx, line()); err == nil {
			clear(secret)
		}
	}
	runtime.GC()
	fmt.Println("done", err)
	_, _ = io.Copy(io.Discard, in)
	return 0
}

func TestNoPrivateKeyIsInTheMemory(t *testing.T) {
	t.Parallel()
	e := emulator(t)
	d := open(t, e, Options{})
	clear := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	wrapped := must(Wrap(must(d.Parent(t.Context()))(t), clear))(t)
	secret := make([]byte, 48)
	_, _ = rand.Read(secret)
	sealed := must(d.Seal(t.Context(), secret, nil))(t)
	d.Close()
	cmd := exec.CommandContext(t.Context(), must(os.Executable())(t))
	cmd.Env = append(os.Environ(), remembers+"="+e.Address())
	in, out := must(cmd.StdinPipe())(t), must(cmd.StdoutPipe())(t)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = cmd.Wait() }()
	for _, text := range [][]byte{wrapped, sealed} {
		fmt.Fprintln(in, base64.StdEncoding.EncodeToString(text))
	}
	if said, err := bufio.NewReader(out).ReadString('\n'); err != nil || said != "done <nil>\n" {
		t.Fatalf("%q %v", said, err)
	}
	memory := memoryOf(t, cmd.Process.Pid)
	scalar, point := must(clear.Bytes())(t), must(clear.PublicKey.Bytes())(t)
	if bytes.Count(memory, point[1:33]) == 0 {
		t.Fatal("not even the public key is found: this looks in the wrong place")
	}
	backwards := slices.Clone(scalar) // as big integers lie in memory
	slices.Reverse(backwards)
	if bytes.Contains(memory, scalar) || bytes.Contains(memory, backwards) {
		t.Error("the private key is in the memory of the process that imported it")
	}
	// Package tpm2 decrypts an answer in buffers of its own, which nobody else can
	// clear, and stacks that grow leave copies: how many is no promise.
	t.Logf("copies of an unsealed secret that its user cleared: %d", bytes.Count(memory, secret))
}

func TestNoPrivateKeyIsInAFile(t *testing.T) {
	dir := folder(t)
	e := emulator(t)
	d := open(t, e, Options{})
	key := signer(t)
	wrapped := must(Wrap(must(d.Parent(t.Context()))(t), key))(t)
	loadable := must(d.Import(t.Context(), wrapped))(t)
	for name, text := range map[string][]byte{"wrapped": wrapped, "loadable": loadable} {
		write(t, filepath.Join(dir, name), text)
		f := must(base64.StdEncoding.DecodeString(strings.Join(strings.Split(strings.TrimSpace(string(text)), "\n")[1:strings.Count(string(text), "\n")-1], "")))(t)
		if bytes.Contains(f, must(key.Bytes())(t)) {
			t.Errorf("the %s file has the private key in it", name)
		}
		if point := must(key.PublicKey.Bytes())(t); !bytes.Contains(f, point[1:33]) {
			t.Errorf("the %s file has not even the public key in it", name)
		}
	}
}

// memoryOf reads all that a process may write to and did.
func memoryOf(t testing.TB, pid int) (all []byte) {
	t.Helper()
	maps := string(read(t, fmt.Sprintf("/proc/%d/maps", pid)))
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Skip("the memory of another process cannot be read here: ", err)
	}
	defer mem.Close()
	pagemap := must(os.Open(fmt.Sprintf("/proc/%d/pagemap", pid)))(t)
	defer pagemap.Close()
	page := uint64(os.Getpagesize())
	for line := range strings.Lines(maps) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(fields[1], "rw") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		begin, end := must(strconv.ParseUint(from, 16, 64))(t), must(strconv.ParseUint(to, 16, 64))(t)
		if end-begin > 1<<30 { // what the race detector reserves
			continue
		}
		entries := make([]byte, (end-begin)/page*8)
		if _, err := pagemap.ReadAt(entries, int64(begin/page*8)); err != nil {
			t.Skip("what is in the memory of another process cannot be told here: ", err)
		}
		part := make([]byte, page)
		for i := range (end - begin) / page {
			if entries[i*8+7]&0x80 == 0 { // bit 63: present (Documentation/admin-guide/mm/pagemap.rst)
				continue
			}
			if _, err := mem.ReadAt(part, int64(begin+i*page)); err == nil {
				all = append(all, part...)
			}
		}
	}
	return all
}
