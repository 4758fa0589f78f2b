package enroll

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Reset moves all stores aside, with the note of which TPM they belong to, and
// reports whether there was any. What an earlier reset moved aside is gone then.
// In the TPM there is nothing to remove. It looks at no file, so that it is the
// way back from whatever is damaged.
func (a *Applicant) Reset() (bool, error) {
	if _, err := os.Lstat(a.Home); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	aside := filepath.Clean(a.Home) + ".reset"
	if err := os.RemoveAll(aside); err != nil {
		return false, err
	}
	return true, os.Rename(a.Home, aside)
}
