package sim

import (
	"encoding/binary"
	"math"
	"time"
	"unicode/utf16"
)

// Object classes, attribute groups and attributes of the MDIB, as far as this
// monitor has them (Data Export Interface, nomenclature chapter).
const (
	classEnum    = 0x0005
	classNumeric = 0x0006
	classWave    = 0x0009
	classMDS     = 0x0021
	classBed     = 0x0023
	classPatient = 0x002A
	classAlarms  = 0x0036

	groupAll     = 0x0000
	groupAlarms  = 0x0801
	groupValue   = 0x0803
	groupPatient = 0x0807
	groupSystem  = 0x080A
	groupIdent   = 0x080B
	groupProduct = 0x080C
	groupDynamic = 0x0810
	groupStatic  = 0x0811

	attrPatientAlarms   = 0x0902
	attrTechnicalAlarms = 0x0904
	attrAltitude        = 0x090C
	attrArea            = 0x090D
	attrColour          = 0x0911
	attrAlarmCondition  = 0x0916
	attrResolution      = 0x0917
	attrAssociation     = 0x091D
	attrBedLabel        = 0x091E
	attrHandle          = 0x0921
	attrLabel           = 0x0924
	attrLabelString     = 0x0927
	attrModel           = 0x0928
	attrProduct         = 0x092D
	attrType            = 0x092F
	attrLineFrequency   = 0x0935
	attrLocalization    = 0x0937
	attrMetricSpec      = 0x093F
	attrMetricState     = 0x0940
	attrMeasureMode     = 0x0945
	attrOperatingMode   = 0x0946
	attrNomenclature    = 0x0948
	attrCompoundNumeric = 0x094B
	attrNumeric         = 0x0950
	attrBSA             = 0x0956
	attrPatientState    = 0x0957
	attrBorn            = 0x0958
	attrPatientID       = 0x095A
	attrFamily          = 0x095C
	attrGiven           = 0x095D
	attrSex             = 0x0961
	attrPatientType     = 0x0962
	attrCalibration     = 0x0964
	attrCompoundWave    = 0x0967
	attrPhysioRange     = 0x096A
	attrSampleSpec      = 0x096D
	attrWave            = 0x096E
	attrScale           = 0x096F
	attrSafety          = 0x0982
	attrSystemID        = 0x0984
	attrSystemSpec      = 0x0985
	attrSystemType      = 0x0986
	attrTimeAbs         = 0x0987
	attrSamplePeriod    = 0x098D
	attrTimeRel         = 0x098F
	attrStampAbs        = 0x0990
	attrUnit            = 0x0996
	attrEnum            = 0x099E
	attrMDSStatus       = 0x09A7
	attrAge             = 0x09D8
	attrHeight          = 0x09DC
	attrWeight          = 0x09DF
	attrFixedValues     = 0x0A16
	attrADTState        = 0x0A1A
	attrPaced           = 0x0A1E
	attrProtocols       = 0xF101
	attrNotes1          = 0xF129
	attrNotes2          = 0xF12A
	attrPollLifetime    = 0xF13E
	attrBSAFormula      = 0xF1EC
	attrGeneralInfo     = 0xF1FA
	attrPollCount       = 0xF228
	attrCuffTimer       = 0xF237
	attrNumericList     = 0xF239
	attrWaveList        = 0xF23A
	attrMiddle          = 0xF2E1
	attrNetAddress      = 0xF100

	actionPoll    = 0x0C16
	actionPollExt = 0xF13B
	eventCreate   = 0x0D06
	eventConnect  = 0x0D17
)

// Remote operations, their commands and their errors.
const (
	opInvoke = 1
	opResult = 2
	opError  = 3
	opLinked = 5

	cmdConfirmedEvent  = 1
	cmdGet             = 3
	cmdSet             = 4
	cmdConfirmedSet    = 5
	cmdConfirmedAction = 7

	errNoClass       = 0
	errNoInstance    = 1
	errAccessDenied  = 2
	errGetList       = 7
	errSetList       = 8
	errNoAction      = 9
	errInvalidArg    = 15
	errInvalidScope  = 16
	statusNoAttr     = 5
	linkFirst        = 1
	linkMiddle       = 2
	linkLast         = 3
	maxWireCount     = 0xFFFF
	relativePerTick  = 8192 // 1.024 s in units of RelativeTime
	relativePerBlock = 2048 // 256 ms
	relativeUnit     = 125 * time.Microsecond
)

func u16(b []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(b, v) }
func u32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }

// sized appends the length of what f appends, then that.
func sized(b []byte, f func([]byte) []byte) []byte {
	at := len(b)
	b = f(u16(b, 0))
	binary.BigEndian.PutUint16(b[at:], uint16(len(b)-at-2))
	return b
}

// counted appends a count and the length of what f appends, then that.
func counted(b []byte, n int, f func([]byte) []byte) []byte {
	return sized(u16(b, uint16(n)), f)
}

// An attribute is one entry of an attribute list, with the group that a poll
// asks for it by.
type attribute struct {
	group, id uint16
	value     []byte
}

func (a attribute) append(b []byte) []byte {
	return append(u16(u16(b, a.id), uint16(len(a.value))), a.value...)
}

// appendAttributes appends an attribute list.
func appendAttributes(b []byte, list []attribute) []byte {
	return counted(b, len(list), func(b []byte) []byte {
		for _, a := range list {
			b = a.append(b)
		}
		return b
	})
}

// attr16 and attr32 make attributes of one number.
func attr16(group, id, v uint16) attribute { return attribute{group, id, u16(nil, v)} }
func attr32(group, id uint16, v uint32) attribute {
	return attribute{group, id, u32(nil, v)}
}

// A float is a FLOAT-Type number: mantissa × 10^exponent with a 24-bit
// mantissa. The zero value is 0; nan has no value.
type float struct {
	mantissa int32
	exponent int8
}

var nan = float{mantissa: 0x7FFFFF}

func (f float) bits() uint32 {
	return uint32(uint8(f.exponent))<<24 | uint32(f.mantissa)&0xFFFFFF
}

func (f float) isNaN() bool { return f.mantissa == 0x7FFFFF }

// toFloat rounds v to the given number of decimals.
func toFloat(v float64, decimals int8) float {
	m := math.Round(v * math.Pow10(int(decimals)))
	if math.IsNaN(m) || math.Abs(m) > 0x7FFFFD {
		return nan
	}
	return float{int32(m), -decimals}
}

// appendBCD appends t as AbsoluteTime: century, year, month, day, hour,
// minute, second and hundredths in BCD; all ones where t is zero.
func appendBCD(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF)
	}
	for _, v := range [...]int{t.Year() / 100, t.Year() % 100, int(t.Month()), t.Day(),
		t.Hour(), t.Minute(), t.Second(), t.Nanosecond() / 1e7} {
		b = append(b, byte(v/10<<4|v%10))
	}
	return b
}

// appendString appends a String: the length in bytes, then UTF-16 with a
// closing zero. size is the number of characters to fill up to, 0 for none.
func appendString(b []byte, s string, size int) []byte {
	return sized(b, func(b []byte) []byte {
		n := 0
		for _, c := range utf16.Encode([]rune(s)) {
			if size > 0 && n == size {
				break
			}
			b, n = u16(b, c), n+1
		}
		for ; n < size; n++ {
			b = u16(b, ' ')
		}
		return u16(b, 0)
	})
}

// appendText appends a VariableLabel: the length, then ASCII with a closing
// zero, even in all.
func appendText(b []byte, s string) []byte {
	return sized(b, func(b []byte) []byte {
		b = append(append(b, s...), 0)
		if len(s)%2 == 0 {
			b = append(b, 0)
		}
		return b
	})
}

// dataExport begins a data-export PDU: session id and presentation context.
func dataExport(b []byte, op uint16, body func([]byte) []byte) []byte {
	return sized(u16(u32(b, 0xE1000002), op), body)
}

// operation appends invoke id, command and the sized argument.
func operation(b []byte, invoke, command uint16, body func([]byte) []byte) []byte {
	return sized(u16(u16(b, invoke), command), body)
}

// managedMDS appends the managed object that all requests and answers name.
func managedMDS(b []byte) []byte { return u32(u16(b, classMDS), 0) }
