package tunnel

import (
	"fmt"
	"slices"
	"time"
)

// Update takes another configuration. Listeners that stay keep their sockets,
// and a session goes on as long as its device may still connect to its listener
// and what it asked for leads to the same platform. The others end in a moment
// of silence, at the latest after the grace. Where the new configuration is
// wrong nothing changes.
func (s *Server) Update(c Config) error {
	s.updating.Lock()
	defer s.updating.Unlock()
	c, err := c.complete()
	if err != nil {
		return err
	}
	gates, err := s.planGates(c)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return errStopping
	}
	started, closed := s.replace(c, gates)
	stray := s.strays(c)
	s.mu.Unlock()
	for _, l := range closed {
		l.close()
	}
	for _, l := range started {
		if s.started {
			s.start(l)
		}
	}
	if len(stray) > 0 {
		s.running.Go(func() { s.drain(stray, errRemoved) })
	}
	return nil
}

// planGates makes a gate for each name by which each platform can be reached,
// and changes none of those that are there.
func (s *Server) planGates(c Config) (map[gateKey]*gate, error) {
	gates := map[gateKey]*gate{}
	for _, l := range c.Listeners {
		for _, r := range l.Routes {
			p := *c.platform(r.Platform)
			for _, name := range r.ServerNames {
				key := keyOf(p, name)
				if gates[key] != nil {
					continue
				}
				g, err := newGate(s, key, p)
				if err != nil {
					return nil, fmt.Errorf("platform %q of the tunnel: %w", p.Name, err)
				}
				gates[key] = g
			}
		}
	}
	return gates, nil
}

func keyOf(p Platform, serverName string) gateKey {
	return gateKey{p.Name, p.Address, p.Connect, serverName}
}

// replace puts the new in place of the old. It needs Server.mu.
func (s *Server) replace(c Config, gates map[gateKey]*gate) (started, closed []*listener) {
	for key, fresh := range gates {
		if g := s.gates[key]; g != nil {
			g.configure(fresh.platform)
			gates[key] = g
		}
	}
	s.gates = gates
	for _, settings := range c.Listeners {
		if l := s.listeners[settings.Address]; l != nil {
			l.configure(settings)
			continue
		}
		l := newListener(s, settings)
		s.listeners[settings.Address] = l
		started = append(started, l)
	}
	for address, l := range s.listeners {
		if !slices.ContainsFunc(c.Listeners, func(n Listener) bool { return n.Address == address }) {
			delete(s.listeners, address)
			closed = append(closed, l)
		}
	}
	return started, closed
}

// strays are the sessions that have no place in the new configuration. It needs Server.mu.
func (s *Server) strays(c Config) (all []*session) {
	for x := range s.sessions {
		if !x.draining && !s.belongs(x) {
			all = append(all, x)
		}
	}
	return all
}

func (s *Server) belongs(x *session) bool {
	l := s.listeners[x.listener.address]
	if l != x.listener {
		return false
	}
	settings := l.now()
	if settings.permits(x, s.o.Neighbours) != nil {
		return false
	}
	if x.gate == nil { // it is led by the new configuration, once its hello is there
		return true
	}
	platform, ok := settings.route(x.gate.key.serverName)
	return ok && platform == x.gate.key.platform && s.gates[x.gate.key] == x.gate
}

// drain ends sessions: those in their handshake now, the others in a moment of
// silence, all of them at the end of the grace. It returns when they are over.
func (s *Server) drain(all []*session, why error) {
	for _, x := range s.markDraining(all) {
		x.cut(why)
	}
	late := time.Now().Add(s.o.Grace)
	tick := time.NewTicker(min(max(s.o.Quiet/4, time.Millisecond), 100*time.Millisecond))
	defer tick.Stop()
	for {
		now := time.Now()
		all = slices.DeleteFunc(all, (*session).isOver)
		if len(all) == 0 {
			return
		}
		for _, x := range all {
			if now.After(late) || x.silent(now, s.o.Quiet) {
				x.cut(why)
			}
		}
		<-tick.C
	}
}

// markDraining gives those that are in their handshake.
func (s *Server) markDraining(all []*session) (shaking []*session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range all {
		x.draining = true
		if x.phase != open {
			shaking = append(shaking, x)
		}
	}
	return shaking
}
