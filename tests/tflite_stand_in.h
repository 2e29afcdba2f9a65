// What the C++ of docs/deploy.md uses of TensorFlow Lite and LCE, declared as their headers do.
// The tensors are arrays of the test's, and what it does is passed on to functions of the test.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>

typedef enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 } TfLiteStatus;
typedef enum { kTfLiteNoType = 0, kTfLiteFloat32 = 1, kTfLiteInt32 = 2, kTfLiteInt8 = 9 } TfLiteType;
typedef struct TfLiteQuantizationParams {
  float scale;
  int32_t zero_point;
} TfLiteQuantizationParams;
typedef union TfLitePtrUnion {
  void* data;
} TfLitePtrUnion;
typedef struct TfLiteTensor {
  TfLiteType type;
  TfLitePtrUnion data;
  TfLiteQuantizationParams params;
  size_t bytes;
} TfLiteTensor;

static int (*stand_in_open)(const char* path) = nullptr;  // whether it is a network
static int (*stand_in_invoke)() = nullptr;                // whether it went well
static std::vector<TfLiteTensor> stand_in_tensors[2];     // inputs, outputs

extern "C" void stand_in(int (*open)(const char*), int (*invoke)()) {
  stand_in_open = open;
  stand_in_invoke = invoke;
}

extern "C" void stand_in_clear() {
  for (auto& tensors : stand_in_tensors) tensors.clear();
}

extern "C" void stand_in_tensor(int output, int type, void* data, size_t bytes, float scale,
                                int zero_point) {
  stand_in_tensors[output].push_back(
      {static_cast<TfLiteType>(type), {data}, {scale, zero_point}, bytes});
}

namespace tflite {

class OpResolver {
 public:
  virtual ~OpResolver() = default;
};
class MutableOpResolver : public OpResolver {
 public:
  bool has_lce = false;
};
namespace ops {
namespace builtin {
class BuiltinOpResolver : public MutableOpResolver {};
}  // namespace builtin
}  // namespace ops

class FlatBufferModel {
 public:
  static std::unique_ptr<FlatBufferModel> VerifyAndBuildFromFile(const char* filename) {
    std::FILE* file = std::fopen(filename, "rb");
    if (file == nullptr) return nullptr;
    std::fclose(file);
    auto model = std::make_unique<FlatBufferModel>();
    model->is_network = stand_in_open(filename) != 0;
    return model;
  }
  bool is_network = false;
};

class Interpreter {
 public:
  TfLiteStatus AllocateTensors() { return kTfLiteOk; }
  TfLiteStatus Invoke() { return stand_in_invoke() ? kTfLiteOk : kTfLiteError; }
  const std::vector<int>& inputs() const { return inputs_; }
  const std::vector<int>& outputs() const { return outputs_; }
  TfLiteTensor* input_tensor(size_t index) { return &stand_in_tensors[0].at(index); }
  TfLiteTensor* output_tensor(size_t index) { return &stand_in_tensors[1].at(index); }
  template <class T>
  T* typed_input_tensor(int index) {
    return static_cast<T*>(input_tensor(index)->data.data);
  }
  template <class T>
  T* typed_output_tensor(int index) {
    return static_cast<T*>(output_tensor(index)->data.data);
  }

 private:
  std::vector<int> inputs_ = std::vector<int>(stand_in_tensors[0].size());
  std::vector<int> outputs_ = std::vector<int>(stand_in_tensors[1].size());
};

class InterpreterBuilder {
 public:
  InterpreterBuilder(const FlatBufferModel& model, const OpResolver& op_resolver)
      : ready_(model.is_network && static_cast<const MutableOpResolver&>(op_resolver).has_lce) {}
  TfLiteStatus operator()(std::unique_ptr<Interpreter>* interpreter, int) {
    if (ready_) *interpreter = std::make_unique<Interpreter>();
    return ready_ ? kTfLiteOk : kTfLiteError;
  }

 private:
  bool ready_;
};

}  // namespace tflite

namespace compute_engine {
namespace tflite {
inline void RegisterLCECustomOps(::tflite::MutableOpResolver* resolver, const bool = false,
                                 const bool = false) {
  resolver->has_lce = true;
}
}  // namespace tflite
}  // namespace compute_engine
