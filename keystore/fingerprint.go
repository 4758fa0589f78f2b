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

// ReadFingerprint reads which TPM the keys below dir were made in; nil where
// none was made yet.
func ReadFingerprint(dir string) (*tpm.Fingerprint, error) {
	path := filepath.Join(dir, FingerprintFile)
	text, err := ReadFile(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, hint(err)
	}
	var f tpm.Fingerprint
	if err = json.Unmarshal(text, &f); err == nil && (len(f.Storage) == 0 || len(f.Endorsement) == 0) {
		err = errors.New("it names no TPM")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; it was changed: bring it back, or run gatewayd enroll reset, then gatewayd enroll init", path, err)
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
