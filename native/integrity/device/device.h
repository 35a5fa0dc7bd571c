/* Everything of the device path that Python sees. */
#ifndef SEALSVC_PI_DEVICE_H
#define SEALSVC_PI_DEVICE_H

#include "cache.h"
#include "capability.h"
#include "channel.h"
#include "seal_pi.h"
#include "sealsvc/extents.h"

#endif
