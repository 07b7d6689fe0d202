// Check, without its deprecated macro `fail`, which would hide usblease::fail.
#pragma once

#include <check.h>

#undef fail
