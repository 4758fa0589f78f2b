package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// become gives root's rights up for those of whom the state folder belongs to:
// what root would make there, gatewayd could not read. Where the folder is not
// there yet, or root is not asking, it does nothing. There is no way back for the
// process.
func become(stateDir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	if err := impersonate(strconv.FormatUint(uint64(owner.Uid), 10)); err != nil {
		return fmt.Errorf("%s belongs to user %d, whose rights cannot be had (%w): run it as that user", stateDir, owner.Uid, err)
	}
	return nil
}

// impersonate takes the groups as well: that of the TPM is among them.
func impersonate(uid string) error {
	u, err := user.LookupId(uid)
	if err != nil {
		return err
	}
	names, err := u.GroupIds()
	if err != nil {
		return err
	}
	var groups []int
	for _, name := range names {
		n, err := strconv.Atoi(name)
		if err != nil {
			return err
		}
		groups = append(groups, n)
	}
	me, err := strconv.Atoi(uid)
	if err != nil {
		return err
	}
	first, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	return errors.Join(syscall.Setgroups(groups), syscall.Setgid(first), syscall.Setuid(me))
}
