package spool

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// TestNothingIsLostWhenTheProcessIsKilledAtAnyInstant kills a process that enqueues and
// delivers, again and again on the same files. GATEWAY_SPOOL_KILLS is the number of
// rounds.
func TestNothingIsLostWhenTheProcessIsKilledAtAnyInstant(t *testing.T) {
	rounds := 40 / (1 + slow/3)
	if n, err := strconv.Atoi(os.Getenv("GATEWAY_SPOOL_KILLS")); err == nil {
		rounds = n
	} else if testing.Short() {
		rounds = 5
	}
	path, promised := newPath(t), newLedger()
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 7))
	begun, done, stored, taken := time.Now(), 0, 0, 0
	for done < rounds {
		if os.Getenv("GATEWAY_SPOOL_KILLS") == "" && done >= 8 && time.Since(begun) > 2*time.Second {
			break // the machine is slow
		}
		before := [2]int{len(promised.stored), len(promised.taken)}
		if err := killOnce(path, promised, fmt.Sprintf("%04d", done), time.Duration(r.IntN(40_000))*time.Microsecond); err != nil {
			t.Fatalf("round %d: %v", done, err)
		}
		if err := promised.check(path); err != nil {
			t.Fatalf("round %d, after %d promises: %v", done, len(promised.stored), err)
		}
		stored, taken = stored+len(promised.stored)-before[0], taken+len(promised.taken)-before[1]
		if done++; done%25 == 0 { // before it is full
			path, promised = newPath(t), newLedger()
		}
	}
	if stored < done || taken < done/2 {
		t.Errorf("only %d were stored and %d taken in %d rounds: the kills came too early to tell anything", stored, taken, done)
	}
	t.Logf("%d kills, %d messages stored, %d accepted", done, stored, taken)
}

// killOnce starts the child, and kills it some time after its first promise.
func killOnce(path string, promised *ledger, label string, after time.Duration) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	var stderr bytes.Buffer
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", childEnv, path, label, 1_000_000))
	child.ExtraFiles, child.Stderr = []*os.File{w}, &stderr
	err = child.Start()
	w.Close()
	if err != nil {
		return err
	}
	first := make(chan struct{}, 1)
	read := make(chan error, 1)
	go func() { read <- promised.read(&noticing{r, first}) }()
	select {
	case <-first:
		time.Sleep(after) // the instant of the kill
	case <-time.After(30 * time.Second):
	}
	child.Process.Kill()
	child.Wait()
	if err := <-read; err != nil {
		return err
	}
	if stderr.Len() > 0 {
		return fmt.Errorf("the child: %s", &stderr)
	}
	return nil
}

// A noticing reader tells when the first bytes come.
type noticing struct {
	r     *os.File
	first chan struct{}
}

func (n *noticing) Read(p []byte) (int, error) {
	k, err := n.r.Read(p)
	select {
	case n.first <- struct{}{}:
	default:
	}
	return k, err
}
