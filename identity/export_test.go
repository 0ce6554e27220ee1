package identity

// Followed returns how many connections are followed.
func (s *Source) Followed() int { return len(s.conns.all()) }
