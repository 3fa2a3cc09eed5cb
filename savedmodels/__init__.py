"""The models that come with the package; installed as `liverseg_tf.savedmodels`."""
