package spool

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An event is one system call that the child made on the folder of the spool, or a
// promise that it gave, in the order in which they happened.
type event struct {
	kind   eventKind
	file   int // number of the file, whatever its name is by now
	name   string
	to     string
	offset int64
	data   []byte
}

type eventKind uint8

const (
	eventPromise  eventKind = iota // data
	eventCreate                    // name is file now
	eventWrite                     // data at offset
	eventTruncate                  // to offset
	eventSync                      // what was written to file is on the disk
	eventRename                    // name is called to
	eventUnlink                    // name is gone
	eventSyncDir                   // the names are on the disk
)

// A tracer follows all threads of a child, by ptrace: what really goes to the kernel, not
// what the libraries say.
type tracer struct {
	dir    string
	names  map[string]int
	files  int
	events []event
	calls  map[int]call // by thread: the call that it is in
}

type call struct {
	nr   uint64
	args [6]uint64
	name string // of the file that it is on
	data []byte
}

// syscallInfo is struct ptrace_syscall_info, the same on all machines.
type syscallInfo struct {
	op   uint8
	_    [3]uint8
	arch uint32
	_    [2]uint64
	nr   uint64 // on entry; on exit the result
	args [6]uint64
	_    uint64
}

const (
	ptraceGetSyscallInfo = 0x420e
	syscallEntry         = 1
	syscallExit          = 2
)

// errNoTrace says that this machine does not let a process be traced.
var errNoTrace = errors.New("ptrace is not allowed here")

// trace runs the child to its end and gives what it did to dir, in which there are the
// files of names already.
func trace(child *exec.Cmd, dir string, names map[string]int) ([]event, error) {
	runtime.LockOSThread() // ptrace belongs to the thread
	defer runtime.UnlockOSThread()
	child.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true}
	if err := child.Start(); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoTrace, err)
	}
	pid := child.Process.Pid
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil || !status.Stopped() {
		return nil, fmt.Errorf("%w: %v", errNoTrace, err)
	}
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(pid, options); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoTrace, err)
	}
	t := &tracer{dir: dir, names: maps.Clone(names), files: len(names), calls: map[int]call{}}
	err := unix.PtraceSyscall(pid, 0)
	if err == nil {
		err = t.follow(pid)
	}
	return t.events, err
}

// follow lets the threads run from call to call until the process ends.
func (t *tracer) follow(pid int) error {
	for {
		var status unix.WaitStatus
		tid, err := unix.Wait4(-pid, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case status.Exited() || status.Signaled():
			if tid != pid {
				continue
			}
			if status.Signaled() || status.ExitStatus() != 0 {
				return fmt.Errorf("the child ended with %v", status)
			}
			return nil
		}
		signal := 0
		switch stop := status.StopSignal(); {
		case stop == unix.SIGTRAP|0x80:
			if err := t.stop(tid); err != nil {
				return err
			}
		case stop != unix.SIGTRAP && stop != unix.SIGSTOP:
			signal = int(stop)
		}
		if err := unix.PtraceSyscall(tid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
}

// stop is at the entry or the exit of a call.
func (t *tracer) stop(tid int) error {
	var info syscallInfo
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, ptraceGetSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if e == unix.ESRCH {
		return nil // the thread is gone meanwhile
	}
	if e != 0 {
		return fmt.Errorf("a call of the child cannot be looked at: %w", e)
	}
	switch info.op {
	case syscallEntry:
		c := call{nr: info.nr, args: info.args}
		if err := t.enter(tid, &c); err != nil {
			return err
		}
		t.calls[tid] = c
	case syscallExit:
		c := t.calls[tid]
		delete(t.calls, tid)
		if result := int64(info.nr); result >= 0 {
			t.exit(tid, c, result)
		}
	}
	return nil
}

// enter notes what is written when it begins: from then on it may be on the disk.
func (t *tracer) enter(tid int, c *call) error {
	switch c.nr {
	case unix.SYS_PWRITE64, unix.SYS_WRITE:
		if c.nr == unix.SYS_WRITE && c.args[0] == 3 {
			data, err := peek(tid, c.args[1], c.args[2])
			t.events = append(t.events, event{kind: eventPromise, data: data})
			return err
		}
		if c.name = t.file(tid, c.args[0]); c.name == "" {
			return nil
		}
		if c.nr == unix.SYS_WRITE {
			offset, err := position(tid, c.args[0])
			if err != nil {
				return err
			}
			c.args[3] = uint64(offset)
		}
		data, err := peek(tid, c.args[1], c.args[2])
		t.events = append(t.events, event{kind: eventWrite, file: t.names[c.name], offset: int64(c.args[3]), data: data})
		return err
	case unix.SYS_FTRUNCATE:
		if c.name = t.file(tid, c.args[0]); c.name != "" {
			t.events = append(t.events, event{kind: eventTruncate, file: t.names[c.name], offset: int64(c.args[1])})
		}
	case unix.SYS_FDATASYNC, unix.SYS_FSYNC:
		c.name = t.file(tid, c.args[0])
		if c.name == "" && link(tid, c.args[0]) == t.dir {
			c.name = t.dir
		}
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_UNLINKAT, unix.SYS_OPENAT:
		from, err := peekString(tid, c.args[1])
		if err != nil {
			return err
		}
		c.name = from
		if c.nr == unix.SYS_RENAMEAT || c.nr == unix.SYS_RENAMEAT2 {
			to, err := peekString(tid, c.args[3])
			c.data = []byte(to)
			return err
		}
	case unix.SYS_PWRITEV, unix.SYS_WRITEV, unix.SYS_FALLOCATE, unix.SYS_COPY_FILE_RANGE, unix.SYS_SENDFILE, unix.SYS_SPLICE, unix.SYS_PWRITEV2:
		if name := t.file(tid, c.args[0]); name != "" {
			return fmt.Errorf("the spool makes the call %d on %s, which this test does not know", c.nr, name)
		}
	}
	return nil
}

// exit notes what has happened when a call is over.
func (t *tracer) exit(tid int, c call, result int64) {
	switch c.nr {
	case unix.SYS_FDATASYNC, unix.SYS_FSYNC:
		if c.name == t.dir {
			t.events = append(t.events, event{kind: eventSyncDir})
		} else if c.name != "" {
			t.events = append(t.events, event{kind: eventSync, file: t.names[c.name]})
		}
	case unix.SYS_OPENAT:
		t.opened(c)
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		if to := string(c.data); t.inside(c.name) && t.inside(to) {
			t.names[to] = t.names[c.name]
			delete(t.names, c.name)
			t.events = append(t.events, event{kind: eventRename, name: c.name, to: to})
		}
	case unix.SYS_UNLINKAT:
		if t.inside(c.name) {
			delete(t.names, c.name)
			t.events = append(t.events, event{kind: eventUnlink, name: c.name})
		}
	}
}

// opened notes a file that was made, or cut to nothing, by opening it.
func (t *tracer) opened(c call) {
	if !t.inside(c.name) {
		return
	}
	file, known := t.names[c.name]
	switch {
	case !known && c.args[2]&unix.O_CREAT != 0:
		t.files++
		t.names[c.name] = t.files
		t.events = append(t.events, event{kind: eventCreate, name: c.name, file: t.files})
	case known && c.args[2]&unix.O_TRUNC != 0:
		t.events = append(t.events, event{kind: eventTruncate, file: file})
	}
}

func (t *tracer) inside(name string) bool { return filepath.Dir(name) == t.dir }

// file is the name of an open file in the folder of the spool, "" for all others.
func (t *tracer) file(tid int, fd uint64) string {
	if name := link(tid, fd); t.inside(name) {
		return name
	}
	return ""
}

func link(tid int, fd uint64) string {
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, int32(fd)))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(name, " (deleted)")
}

// position is the offset at which a write without one goes.
func position(tid int, fd uint64) (offset int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", tid, fd))
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscanf(string(b), "pos: %d", &offset)
	return offset, err
}

// peek reads the memory of the child.
func peek(tid int, at, n uint64) ([]byte, error) {
	b := make([]byte, n)
	if n == 0 {
		return b, nil
	}
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	got, err := unix.ProcessVMReadv(tid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(b)}}, 0)
	if err == nil && got != len(b) {
		err = fmt.Errorf("only %d of %d bytes of the child can be read", got, n)
	}
	return b[:max(got, 0)], err
}

func peekString(tid int, at uint64) (string, error) {
	const page = 4096
	b, err := peek(tid, at, page-at%page)
	end := bytes.IndexByte(b, 0)
	if err == nil && end < 0 {
		var more []byte
		more, err = peek(tid, at+uint64(len(b)), page)
		b = append(b, more...)
		end = bytes.IndexByte(b, 0)
	}
	if err != nil || end < 0 {
		return "", fmt.Errorf("a name in the child cannot be read: %w", err)
	}
	return string(b[:end]), nil
}
