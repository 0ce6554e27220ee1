// Package diskfault is a file system with faults between a program and a disk, for
// tests: Wrap lets a hook fail, cut short or hold up any operation, and Bounded has
// room for a number of bytes and no more.
package diskfault
