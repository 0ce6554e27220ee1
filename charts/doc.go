// Package charts holds the tests of the Helm chart and of the manifests in config.
package charts
