-- Orthanc sends each stable MR series to the receiver, but none that came back from there.
function OnStableSeries(series, tags, metadata)
   if tags['Modality'] == 'MR' and tags['Manufacturer'] ~= 'ddib-fed' then
      RestApiPost('/modalities/ddib/store', DumpJson({Resources = {series}, Asynchronous = true}, true))
   end
end
