"""What the kernel itself reports of file systems, heard by a process of its own.

The process has no thread that a service's end could wait for: a fanotify group with marks on a
file system is released only when nobody waits there for an answer of another group, and until then
its owner cannot end (native/gate/groups.c)."""
