/* Everything the Python binding sees. */
#ifndef SEALSVC_INTEGRITY_BINDING_H
#define SEALSVC_INTEGRITY_BINDING_H

#include "crc.h"
#include "pi.h"

#endif
