// error: a config.json's path goes with #include <headaware/io/model_shape.hpp>
#include <headaware/compressor.hpp>

void f() { (void)headaware::Compressor::from_model_config("config.json"); }
