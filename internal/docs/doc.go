// Package docs holds tests that check docs/formats.md and docs/bounds.md against
// the code.
package docs
