#pragma once

#include "flowturbo/error.hpp"
#include "flowturbo/pipeline.hpp"
