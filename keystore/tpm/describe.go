package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// A Description is what a TPM says of itself.
type Description struct {
	Manufacturer string `json:"manufacturer"` // four letters of the TCG's registry
	Firmware     string `json:"firmware"`
	Lockout      bool   `json:"lockout"` // keys with a password are refused until it is over; ours have none
	P384         bool   `json:"ecc_p384"`
	Waiting      int    `json:"-"` // users of this gateway that wait for it
}

// Describe asks the TPM.
func (t *TPM) Describe(ctx context.Context) (d Description, err error) {
	err = t.use(ctx, "describe the TPM", func(l *link) error {
		var p [4]uint32
		for i, of := range []tpm2.TPMPT{tpm2.TPMPTManufacturer, tpm2.TPMPTFirmwareVersion1, tpm2.TPMPTFirmwareVersion2, tpm2.TPMPTPermanent} {
			var err error
			if p[i], err = l.property(of); err != nil {
				return err
			}
		}
		d.Manufacturer = printable(binary.BigEndian.AppendUint32(nil, p[0]))
		d.Firmware = fmt.Sprintf("%d.%d.%d.%d", p[1]>>16, p[1]&0xffff, p[2]>>16, p[2]&0xffff)
		d.Lockout = p[3]&inLockout != 0
		d.P384 = l.hasCurve(tpm2.TPMECCNistP384)
		d.Waiting = int(t.waiting.Load())
		return nil
	})
	return d, err
}

// inLockout is the bit of TPMA_PERMANENT (Part 2, 8.6).
const inLockout = 1 << 9

func printable(b []byte) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string(b)))
}

func (l *link) property(p tpm2.TPMPT) (uint32, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(p), PropertyCount: 1}.Execute(l)
	if err != nil {
		return 0, err
	}
	list, err := r.CapabilityData.Data.TPMProperties()
	if err != nil {
		return 0, err
	}
	if len(list.TPMProperty) != 1 || list.TPMProperty[0].Property != p {
		return 0, errors.New("it does not tell its properties: it is no TPM 2.0")
	}
	return list.TPMProperty[0].Value, nil
}

func (l *link) handles(first uint32) ([]tpm2.TPMHandle, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(l)
	if err != nil {
		return nil, err
	}
	list, err := r.CapabilityData.Data.Handles()
	if err != nil {
		return nil, err
	}
	return list.Handle, nil
}

func (l *link) hasCurve(c tpm2.TPMECCCurve) bool {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapECCCurves, Property: uint32(c), PropertyCount: 1}.Execute(l)
	if err != nil {
		return false
	}
	list, err := r.CapabilityData.Data.ECCCurves()
	return err == nil && len(list.ECCCurves) == 1 && list.ECCCurves[0] == c
}
