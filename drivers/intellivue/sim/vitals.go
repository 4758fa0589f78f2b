package sim

import (
	"math"
	"math/rand/v2"
	"time"
)

// A Baseline is where the vital signs of a patient wander about. Zero fields
// are those of a healthy adult at rest.
type Baseline struct {
	HeartRate  float64 // 1/min; 72
	Systolic   float64 // mmHg; 120
	Diastolic  float64 // mmHg; 74
	SpO2       float64 // %; 97.5
	RespRate   float64 // 1/min; 15
	Temp       float64 // °C; 36.9
	CVP        float64 // mmHg; 7
	EndTidal   float64 // etCO2, mmHg; 38
	PVCsPerMin float64 // ventricular ectopic beats; 0
}

func (b *Baseline) fill() {
	or(&b.HeartRate, 72)
	or(&b.Systolic, 120)
	or(&b.Diastolic, 74)
	or(&b.SpO2, 97.5)
	or(&b.RespRate, 15)
	or(&b.Temp, 36.9)
	or(&b.CVP, 7)
	or(&b.EndTidal, 38)
}

// A wander is a value that drifts about zero and is drawn back to it
// (Ornstein-Uhlenbeck): with the time constant tau it has deviation sigma.
type wander struct{ x, sigma, tau float64 }

func (w *wander) step(dt float64, rng *rand.Rand) {
	keep := math.Exp(-dt / w.tau)
	w.x = w.x*keep + w.sigma*math.Sqrt(1-keep*keep)*rng.NormFloat64()
}

// vitals is the patient. One slow drive (arousal) moves heart rate, pressure
// and breathing together; the rest is each sign's own.
type vitals struct {
	base  Baseline
	paced bool
	rng   *rand.Rand
	at    time.Duration

	arousal, hr, press, resp, sat, temp, co2, perf wander
}

// vitalStep is the time step of the slow signs.
const vitalStep = time.Second

func newVitals(b Baseline, paced bool, rng *rand.Rand) *vitals {
	b.fill()
	return &vitals{
		base: b, paced: paced, rng: rng,
		arousal: wander{sigma: 1, tau: 120}, hr: wander{sigma: 1.5, tau: 12}, press: wander{sigma: 2, tau: 25},
		resp: wander{sigma: 0.8, tau: 20}, sat: wander{sigma: 0.7, tau: 45}, temp: wander{sigma: 0.15, tau: 1800},
		co2: wander{sigma: 1, tau: 30}, perf: wander{sigma: 0.4, tau: 60},
	}
}

// advance brings the patient to a time after the start. It is coarse over long gaps.
func (v *vitals) advance(to time.Duration) {
	step := max(vitalStep, (to-v.at)/256)
	for ; v.at+step <= to; v.at += step {
		for _, w := range []*wander{&v.arousal, &v.hr, &v.press, &v.resp, &v.sat, &v.temp, &v.co2, &v.perf} {
			w.step(step.Seconds(), v.rng)
		}
	}
}

func (v *vitals) heartRate() float64 {
	if v.paced {
		return 70 // the pacer's own
	}
	return max(v.base.HeartRate+4*v.arousal.x+v.hr.x, 25)
}

func (v *vitals) respRate() float64 {
	return max(v.base.RespRate+1.2*v.arousal.x+v.resp.x, 4)
}

func (v *vitals) systolic() float64  { return v.base.Systolic + 6*v.arousal.x + v.press.x }
func (v *vitals) diastolic() float64 { return v.base.Diastolic + 3*v.arousal.x + 0.6*v.press.x }

// mean is the usual estimate: diastole lasts two thirds of a beat.
func (v *vitals) mean() float64 {
	return v.diastolic() + (v.systolic()-v.diastolic())/3
}

func (v *vitals) spo2() float64        { return min(v.base.SpO2+v.sat.x, 100) }
func (v *vitals) temperature() float64 { return v.base.Temp + v.temp.x }
func (v *vitals) perfusion() float64   { return max(3-0.5*v.arousal.x+v.perf.x, 0.2) }
func (v *vitals) cvp() float64         { return v.base.CVP + 0.2*v.press.x }

// endTidal falls when breathing is faster.
func (v *vitals) endTidal() float64 {
	return v.base.EndTidal - 0.8*(v.respRate()-v.base.RespRate) + v.co2.x
}

// A cuff is the last measurement of the cuff; the zero value is none.
type cuff struct {
	at                              time.Time // by the monitor's clock
	due                             time.Time // of the next one, by the world's clock
	systolic, diastolic, mean, beat float64
}

// measure is a cuff measurement: the arterial pressure with the cuff's error.
func (v *vitals) measure(at time.Time) cuff {
	off := 2 * v.rng.NormFloat64()
	return cuff{at: at, systolic: v.systolic() + off, diastolic: v.diastolic() + off/2,
		mean: v.mean() + off/2, beat: v.heartRate()}
}
