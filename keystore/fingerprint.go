package keystore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// FingerprintFile is the name of the file beside the stores that says which TPM
// their keys are in.
const FingerprintFile = "tpm.json"

// ErrFingerprint is a note of the TPM that says nothing any more. Which TPM the
// keys are in is not known then; to give them up is possible all the same.
var ErrFingerprint = errors.New("it does not say any more which TPM the keys are in")

// ReadFingerprint reads which TPM the keys below dir were made in; nil where
// none was made yet. A damaged note is ErrFingerprint; one that may not be read,
// or that the disk does not give, is another error.
func ReadFingerprint(dir string) (*tpm.Fingerprint, error) {
	path := filepath.Join(dir, FingerprintFile)
	text, err := ReadFile(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if _, disk := errors.AsType[*fs.PathError](err); disk {
		return nil, hint(err)
	}
	var f tpm.Fingerprint
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	if err == nil && (len(f.Storage) == 0 || len(f.Endorsement) == 0) {
		err = errors.New("it names no TPM")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w (%w): bring it back, or begin anew with %s", path, ErrFingerprint, err, tpm.Anew)
	}
	return &f, nil
}

// WriteFingerprint notes which TPM the keys are in.
func WriteFingerprint(dir string, f tpm.Fingerprint) error {
	text, err := json.Marshal(f)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = WriteFile(filepath.Join(dir, FingerprintFile), append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("note of the TPM: %w", err)
	}
	return nil
}
